//! Who is on the other side of the socket. A sandbox may show its programs the file system of the machine, and neither
//! Landlock nor a mode keeps a program of the same user from connecting; whoever may direct the controller from inside
//! is as good as outside.

use std::fs;
use std::os::fd::AsFd;

use tokio::net::UnixStream;

use crate::runtime::sandbox::{has_ended, is_process_of_runtime, process_of_peer};

/// Most ancestors that are looked at; deeper than any shell nests.
const MOST_ANCESTORS: usize = 256;

/// What is known of whoever connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// It runs outside of every sandbox.
    Outside,
    /// It can't gain privileges (`no_new_privs`), as everything inside of a sandbox can't, and as service managers want it of
    /// services. Who can read the state directory is outside.
    Doubtful,
    /// It runs inside of a sandbox, or nobody knows where any more.
    Inside,
}

/// Judges whoever connected. Its number alone would tell of another process once it was reused.
pub(super) fn judge(stream: &UnixStream) -> Peer {
    let Ok(Some(pid)) = stream.peer_cred().map(|peer| peer.pid()) else { return Peer::Doubtful };
    // One of a process namespace above this one has no number here (pid_namespaces(7)), and sandboxes are below.
    if pid == 0 {
        return Peer::Outside;
    }
    let Ok(process) = process_of_peer(stream.as_fd()) else { return Peer::Inside };
    let found = judge_process(pid);
    match process {
        Some(process) if has_ended(process.as_fd()) => Peer::Inside,
        Some(_) | None => found,
    }
}

/// Judges the process of this number. Nothing that is started inside loses what forbids it to gain privileges, whereas it
/// may lose the ancestors by which it is known, as when these are killed.
fn judge_process(pid: i32) -> Peer {
    let Ok(own) = i32::try_from(std::process::id()) else { return Peer::Doubtful };
    let own = ancestors(own);
    // Where there is no such file system, no sandbox of this runtime can be either.
    if own.is_empty() {
        return Peer::Outside;
    }
    let theirs = ancestors(pid);
    if theirs.is_empty() || theirs.into_iter().any(|one| !own.contains(&one) && is_process_of_runtime(one)) {
        return Peer::Inside;
    }
    match field(pid, "NoNewPrivs:").as_deref() {
        Some("0") => Peer::Outside,
        Some(_) | None => Peer::Doubtful,
    }
}

/// The process itself, its parent and so on; empty where it does not exist.
fn ancestors(pid: i32) -> Vec<i32> {
    let known = std::iter::successors(parent(pid).map(|_| pid), |pid| parent(*pid).filter(|parent| *parent > 0));
    known.take(MOST_ANCESTORS).collect()
}

fn parent(pid: i32) -> Option<i32> {
    field(pid, "PPid:")?.parse().ok()
}

/// A field of `/proc/PID/status`.
fn field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn ancestors_are_told_from_the_process_on() {
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        assert_eq!(ancestors(own)[..2], [own, parent]);
        assert!(ancestors(i32::MAX).is_empty());
    }

    #[test]
    fn who_can_gain_no_privileges_is_doubtful_and_who_is_gone_was_inside() {
        let mut free = Command::new("sleep").arg("600").spawn().unwrap();
        let mut barred = Command::new("setpriv").args(["--no-new-privs", "sleep", "600"]).spawn().unwrap();
        let [of_free, of_barred] = [&free, &barred].map(|child| i32::try_from(child.id()).unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while field(of_barred, "NoNewPrivs:").as_deref() != Some("1") {
            assert!(Instant::now() < end, "setpriv has done its work");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!([of_free, of_barred, i32::MAX].map(judge_process), [Peer::Outside, Peer::Doubtful, Peer::Inside]);
        for child in [&mut free, &mut barred] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Where a process that only connects finds its socket; it does nothing without.
    const SOCKET: &str = "KEEL_TEST_CONNECTS";

    #[test]
    fn connects() {
        let Some(socket) = std::env::var_os(SOCKET) else { return };
        drop(std::os::unix::net::UnixStream::connect(socket).unwrap());
    }

    #[tokio::test]
    async fn who_has_ended_since_it_connected_was_inside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let own = UnixStream::connect(&path).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert_eq!(judge(&accepted), Peer::Outside, "it is this process");
        if process_of_peer(own.as_fd()).unwrap().is_none() {
            return eprintln!("skipped: this kernel has no SO_PEERPIDFD");
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(["--exact", "api::peer::tests::connects"]).env(SOCKET, &path).spawn().unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Its number stays its own until it is waited for.
        while !field(pid, "State:").unwrap().starts_with('Z') {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(judge(&accepted), Peer::Inside);
        child.wait().unwrap();
    }
}
