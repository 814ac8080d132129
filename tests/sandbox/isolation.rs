//! What a program inside sees and can do.

use crate::support::Sandbox;

#[tokio::test]
async fn a_program_sees_a_read_only_machine_and_its_own_places() {
    let sandbox = Sandbox::new();
    let (exit, output) = sandbox
        .script("hostname; touch /etc/x 2>/dev/null || echo read-only; touch /tmp/x && ls /tmp; echo $HOSTNAME $HOME")
        .await;
    assert_eq!(output, "web-0\nread-only\nx\nweb-0 /root\n");
    assert_eq!(exit.code, Some(0));
}

#[tokio::test]
async fn a_program_sees_only_its_own_processes_and_devices() {
    let sandbox = Sandbox::new();
    let (_, output) = sandbox.script("busybox ps -o comm | sort; ls /dev").await;
    let devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(
        output.split_whitespace().collect::<Vec<_>>().join(" "),
        format!("COMMAND busybox busybox busybox keel-init {devices}")
    );
}
