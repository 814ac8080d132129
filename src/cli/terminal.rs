//! The terminal that the command was typed on.

use std::os::fd::AsFd;

use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether this is a terminal.
pub fn is_terminal(stream: &impl AsFd) -> bool {
    isatty(stream)
}

/// Columns and rows, of whichever standard stream is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let of = |stream: &dyn AsFd| tcgetwinsize(stream.as_fd()).ok().map(|size| (size.ws_col, size.ws_row));
    let streams: [&dyn AsFd; 3] = [&std::io::stdout(), &std::io::stdin(), &std::io::stderr()];
    streams.into_iter().find_map(of).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// The terminal of standard input hands every key on as it is, until this is dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters it.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal's mode")?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
