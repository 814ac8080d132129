//! What a program inside sees and can do.

use crate::support::Sandbox;

#[tokio::test]
async fn a_program_sees_a_read_only_machine_and_its_own_places() {
    let sandbox = Sandbox::new();
    let (exit, output) = sandbox
        .script("hostname; touch /etc/x 2>/dev/null || echo read-only; touch /tmp/x && ls /tmp; echo $HOSTNAME")
        .await;
    assert_eq!(output, "web-0\nread-only\nx\nweb-0\n");
    assert_eq!(exit.code, Some(0));
}

#[tokio::test]
async fn a_program_sees_only_its_own_processes_and_devices() {
    let sandbox = Sandbox::new();
    let (_, output) = sandbox.script("echo $$; ls -d /proc/[0-9]* | wc -l; ls /dev").await;
    let devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    // The init process is 1 and the shell 2; a pipe of two makes four processes in all.
    let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words == format!("2 4 {devices}") || words == format!("2 3 {devices}"), "{words}");
}
