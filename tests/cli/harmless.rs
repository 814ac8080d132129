//! What others write never steers the terminal on which keel shows it, and reaches pipes as it is.

use std::io::Read;

use crate::rig::Rig;
use crate::sandbox::on_terminal;

/// Clears the screen, sets the title, and asks the terminal to type something.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;title\u{7}\u{1b}[c\u{9b}2J";
/// The same as a shell writes it.
const WRITTEN: &str = "\\033[2J\\033]0;title\\007\\033[c\\302\\233\\062J";
/// And as it is shown.
const SPELLED: &str = "\\u{1b}[2J\\u{1b}]0;title\\u{7}\\u{1b}[c\\u{9b}2J";

fn rig() -> Rig {
    let rig = Rig::new("sandbox");
    let script = serde_json::Value::from(format!("printf 'up {WRITTEN} end\\n'; sleep 1000"));
    rig.write(
        "bad.yaml",
        &format!(
            "version: v1\ndeployment: bad\nservices:\n  web:\n    image: {{ name: host }}\n    \
             command: {{ entrypoint: [sh, -c, {script}] }}\n    stop_grace_period: 0s\n"
        ),
    );
    rig.keel(&["apply", "-f", "bad.yaml"]).expect_code(0);
    rig.until("it has written", || rig.keel(&["logs", "bad/web"]).out.contains("end"));
    rig
}

/// What a command shows on a terminal.
fn shown(rig: &Rig, command: &str) -> String {
    let mut child = on_terminal(rig, command);
    drop(child.stdin.take());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn output_of_instances_and_commands_is_spelled_out_on_a_terminal() {
    let rig = rig();
    let exec = format!("$KEEL exec bad/web -- printf '{} {WRITTEN} end\\n'", "up");
    for command in ["$KEEL logs bad/web", &exec, &format!("{exec} | cat >&2")] {
        let told = shown(&rig, command);
        let piped = command.ends_with(">&2");
        assert_eq!(told.contains(&format!("up {SPELLED} end")), !piped, "{command}: {told:?}");
        assert_eq!(told.contains(HOSTILE), piped, "{command}: {told:?}");
    }
    assert!(rig.keel(&["logs", "bad/web"]).out.contains(HOSTILE), "a pipe gets it as it is");
}

#[test]
fn errors_that_repeat_what_others_said_are_spelled_out_on_a_terminal() {
    let rig = rig();
    for command in [
        "$KEEL exec bad/web -- \"$(printf 'no-such-\\033[2J')\"",
        "$KEEL logs \"$(printf 'bad/\\033[2J')\"",
        "$KEEL describe \"$(printf 'bad/\\033[2J')\"",
        "$KEEL get inst \"$(printf 'bad/\\033[2J')\"",
    ] {
        let told = shown(&rig, command);
        assert!(told.contains("\\u{1b}[2J") && !told.contains("\u{1b}[2J"), "{command}: {told:?}");
    }
}
