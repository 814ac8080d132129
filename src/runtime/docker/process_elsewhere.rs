//! The processes of a command inside a container where the engine runs on a machine of its own, as beside macOS: none is to
//! be seen from here.

/// No process.
#[derive(Debug, Clone, Copy)]
pub(super) enum Process {}

/// Why it lives on.
#[derive(Debug, PartialEq, Eq)]
#[expect(dead_code, reason = "whoever asks knows both")]
pub(super) enum Unkilled {
    /// This program's user may not signal these, as they are numbered inside the container.
    Refused(Vec<i32>),
    /// It was killed, and has not ended in time.
    Alive,
}

impl Process {
    pub(super) const fn find(_pid: i32, _container: &str) -> Option<Self> {
        None
    }

    pub(super) async fn kill(self) -> Result<(), Unkilled> {
        match self {}
    }

    pub(super) async fn await_end(self) -> Result<(), Unkilled> {
        match self {}
    }
}
