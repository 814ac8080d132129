//! Who is on the other side of the socket. A sandbox may show its programs the file system of the machine, and neither
//! Landlock nor a mode keeps a program of the same user from connecting; whoever may direct the controller from inside
//! is as good as outside.

use std::os::fd::AsFd;

use tokio::net::UnixStream;

use crate::runtime::sandbox::{has_ended, is_inside, process_of_peer, status_field};

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
    if is_inside(pid) {
        return Peer::Inside;
    }
    match status_field(pid, "NoNewPrivs:").as_deref() {
        Some("0") => Peer::Outside,
        Some(_) | None => Peer::Doubtful,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn who_can_gain_no_privileges_is_doubtful_and_who_is_gone_was_inside() {
        let mut free = Command::new("sleep").arg("600").spawn().unwrap();
        let mut barred = Command::new("setpriv").args(["--no-new-privs", "sleep", "600"]).spawn().unwrap();
        let [of_free, of_barred] = [&free, &barred].map(|child| i32::try_from(child.id()).unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while status_field(of_barred, "NoNewPrivs:").as_deref() != Some("1") {
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
        while !status_field(pid, "State:").unwrap().starts_with('Z') {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(judge(&accepted), Peer::Inside);
        child.wait().unwrap();
    }
}
