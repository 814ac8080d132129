//! What simulated instances do: programs of a few statements, chosen by command or by image.
//!
//! A command whose first word is `sim` holds one statement per further word: `[sim, "print hello", "exit 3"]`.
//!
//! So does `[sh, -c, "sim; print hello; exit 3"]`, as shell commands of specs are run.
//!
//! | statement | does |
//! |---|---|
//! | `print TEXT`, `warn TEXT` | writes a line to standard output, to standard error |
//! | `base64 TEXT` | writes a line of the bytes that this stands for to standard output |
//! | `env NAME` | writes the value of a variable to standard output; an empty line where it is not set |
//! | `cat` | copies standard input to standard output until it is closed (in `exec` only) |
//! | `wait DURATION` | does nothing for that long |
//! | `requests N` | accepts N connections in every second of its run |
//! | `ready` | takes traffic from here on; a program without it does so from its start |
//! | `ignore` | does not react to the stop signal |
//! | `exit CODE`, `signal NAME`, `oom` | ends |
//! | `missing` | there is no such program: it can't be started |
//! | `unexecutable` | the program can't be executed: it can't be started |
//!
//! A program that comes to its end without ending runs until it is stopped. Images named `sim/...` stand for
//! programs, with a duration as their tag (`sim/crash:250ms`; one second when nothing is written): `sim/crash` exits
//! 1, `sim/once` exits 0, `sim/oom` runs out of memory, `sim/slow` is ready only then, `sim/stubborn` ignores the stop
//! signal, `sim/unstartable` can't be started, `sim/missing` can't be pulled, `sim/reject` is refused. Every other
//! image and command runs until it is stopped.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::spec::{ImageRef, ServiceSpec, Signal};

/// How long the scripted images wait when their tag is no duration: long enough to be seen running.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// First word of a command that is a program of statements.
const MARK: &str = "sim";

/// What one instance, or one command inside it, does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Program {
    /// In this order.
    pub statements: Vec<Statement>,
}

/// One statement of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    Print(String),
    Warn(String),
    Bytes(Vec<u8>),
    Env(String),
    Cat,
    Wait(Duration),
    Requests(u32),
    Ready,
    Ignore,
    Exit(i32),
    OutOfMemory,
    Missing,
    Unexecutable,
}

/// Why a program can't be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Obstacle {
    #[error("there is no such program")]
    Missing,
    #[error("the program can't be executed")]
    Unexecutable,
}

impl Program {
    /// The program of a service: its command's, else its image's.
    ///
    /// # Errors
    /// The text says which statement is none.
    pub fn of(spec: &ServiceSpec) -> Result<Self, String> {
        let command = spec.command.clone().unwrap_or_default();
        let words: Vec<String> =
            command.entrypoint.into_iter().flatten().chain(command.args.into_iter().flatten()).collect();
        if let [shell, flag, script] = words.as_slice()
            && (shell, flag) == (&"sh".to_owned(), &"-c".to_owned())
            && script.split(';').next() == Some(MARK)
        {
            return Self::parse(&script.split(';').map(|word| word.trim().to_owned()).collect::<Vec<_>>());
        }
        if words.first().is_some_and(|word| word == MARK) {
            return Self::parse(&words);
        }
        Ok(Self { statements: scripted(&spec.image.name).map_or_else(Vec::new, Scripted::statements) })
    }

    /// The program of a command line. One that does not begin with the mark does nothing and succeeds.
    ///
    /// # Errors
    /// The text says which statement is none.
    pub fn of_command(words: &[String]) -> Result<Self, String> {
        match words.first() {
            Some(word) if word == MARK => Self::parse(words),
            _ => Ok(Self { statements: vec![Statement::Exit(0)] }),
        }
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        let statements = words.iter().skip(1).map(|word| Statement::parse(word)).collect::<Result<_, _>>()?;
        Ok(Self { statements })
    }

    /// Why it can't be started, where it can't.
    pub fn obstacle(&self) -> Option<Obstacle> {
        self.statements.iter().find_map(|statement| match statement {
            Statement::Missing => Some(Obstacle::Missing),
            Statement::Unexecutable => Some(Obstacle::Unexecutable),
            _ => None,
        })
    }

    /// Connections that it accepts in every second of its run.
    pub fn requests(&self) -> u64 {
        let of = |statement: &Statement| if let Statement::Requests(number) = statement { *number } else { 0 };
        self.statements.iter().map(|statement| u64::from(of(statement))).sum()
    }

    /// Whether it takes traffic from its start.
    pub fn starts_ready(&self) -> bool {
        !self.statements.contains(&Statement::Ready)
    }

    /// Whether it does not react to the stop signal.
    pub fn ignores_stop(&self) -> bool {
        self.statements.contains(&Statement::Ignore)
    }
}

impl Statement {
    fn parse(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let bad = |what: &str| format!("the simulated program's statement {text:?} {what}");
        Ok(match word {
            "print" => Self::Print(rest.to_owned()),
            "warn" => Self::Warn(rest.to_owned()),
            "base64" => Self::Bytes(STANDARD.decode(rest).map_err(|_| bad("needs base64"))?),
            "env" => Self::Env(rest.to_owned()),
            "cat" => Self::Cat,
            "wait" => Self::Wait(humantime::parse_duration(rest).map_err(|_| bad("needs a duration such as 250ms"))?),
            "requests" => Self::Requests(rest.parse().map_err(|_| bad("needs a number of them per second"))?),
            "ready" => Self::Ready,
            "ignore" => Self::Ignore,
            "exit" => Self::Exit(rest.parse().map_err(|_| bad("needs an exit code"))?),
            "signal" => Self::Exit(128 + rest.parse::<Signal>().map_err(|_| bad("needs a signal's name"))?.number()),
            "oom" => Self::OutOfMemory,
            "missing" => Self::Missing,
            "unexecutable" => Self::Unexecutable,
            _ => {
                return Err(bad(
                    "is none of print, warn, env, cat, wait, requests, ready, ignore, exit, signal, oom, missing, \
                     unexecutable",
                ));
            }
        })
    }
}

/// What a `sim/...` image stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scripted {
    Crash(Duration),
    Once(Duration),
    OutOfMemory(Duration),
    Slow(Duration),
    Stubborn,
    Unstartable,
    Missing,
    Reject,
}

impl Scripted {
    fn statements(self) -> Vec<Statement> {
        match self {
            Self::Crash(after) => vec![Statement::Wait(after), Statement::Exit(1)],
            Self::Once(after) => vec![Statement::Wait(after), Statement::Exit(0)],
            Self::OutOfMemory(after) => vec![Statement::Wait(after), Statement::OutOfMemory],
            Self::Slow(after) => vec![Statement::Wait(after), Statement::Ready],
            Self::Stubborn => vec![Statement::Ignore],
            Self::Unstartable => vec![Statement::Missing],
            Self::Missing | Self::Reject => vec![],
        }
    }
}

/// What an image stands for, where it is one of ours.
pub(super) fn scripted(image: &ImageRef) -> Option<Scripted> {
    let ImageRef::Registry(reference) = image else { return None };
    let (name, tag) = reference.strip_prefix("docker.io/sim/")?.split_once(':')?;
    let after = humantime::parse_duration(tag).unwrap_or(DEFAULT_WAIT);
    Some(match name {
        "crash" => Scripted::Crash(after),
        "once" => Scripted::Once(after),
        "oom" => Scripted::OutOfMemory(after),
        "slow" => Scripted::Slow(after),
        "stubborn" => Scripted::Stubborn,
        "unstartable" => Scripted::Unstartable,
        "missing" => Scripted::Missing,
        "reject" => Scripted::Reject,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Option<Scripted> {
        scripted(&text.parse().unwrap())
    }

    #[test]
    fn images_stand_for_programs() {
        assert_eq!(image("sim/crash:250ms"), Some(Scripted::Crash(Duration::from_millis(250))));
        assert_eq!(image("sim/crash"), Some(Scripted::Crash(DEFAULT_WAIT)));
        assert_eq!(image("sim/missing"), Some(Scripted::Missing));
        assert_eq!(image("nginx:1.27"), None);
        assert_eq!(image("sim/web"), None);
    }

    #[test]
    fn a_shell_command_may_be_a_program() {
        let program = |script: &str| {
            let command = format!("image: {{name: a}}\ncommand: {{entrypoint: [sh, -c, '{script}']}}");
            Program::of(&serde_yaml::from_str(&command).unwrap()).unwrap().statements
        };
        assert_eq!(program("sim; print a b; exit 3"), [Statement::Print("a b".to_owned()), Statement::Exit(3)]);
        assert_eq!(program("simple; exit 3"), []);
    }

    #[test]
    fn commands_are_statements() {
        let words = ["sim", "print a b", "wait 2s", "signal TERM"].map(str::to_owned);
        let want =
            vec![Statement::Print("a b".to_owned()), Statement::Wait(Duration::from_secs(2)), Statement::Exit(143)];
        assert_eq!(Program::of_command(&words).unwrap().statements, want);
        let served = Program::of_command(&["sim", "requests 7", "wait 1s"].map(str::to_owned)).unwrap();
        assert_eq!(served.requests(), 7);
        let error = Program::of_command(&["sim", "requests -1"].map(str::to_owned)).unwrap_err();
        assert!(error.contains("\"requests -1\" needs a number"), "{error}");
        let error = Program::of_command(&["sim", "exti 3"].map(str::to_owned)).unwrap_err();
        assert!(error.contains("\"exti 3\"") && error.contains("exit"), "{error}");
    }
}
