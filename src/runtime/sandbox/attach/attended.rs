//! What a supervisor reads of its program, and who sees it besides the log.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::super::cri::Framer;
use super::super::layout::InstanceDir;
use super::super::pty;
use super::super::record::Launch;
use super::audience::{Audience, Input};
use super::console::Held;
use crate::runtime::io::OutputStream;

/// One of the program's outputs.
#[derive(Debug)]
pub struct Output {
    /// Gives it, until it ended.
    pub pipe: Option<File>,
    /// Makes lines of it.
    pub framer: Framer,
    /// The other end of a terminal: without it a program that closes its terminal and opens it again would be read no
    /// more.
    _held_open: Option<OwnedFd>,
}

impl Output {
    fn new(pipe: Option<OwnedFd>, stream: OutputStream) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self { pipe: pipe.map(File::from), framer: Framer::new(stream), _held_open: None })
    }
}

/// What a supervisor attends.
#[derive(Debug)]
pub struct Attended {
    /// Standard output and standard error; the former alone has what is written to a terminal.
    pub outputs: [Output; 2],
    /// Those who are attached, where anybody can be.
    pub audience: Option<Audience>,
}

impl Held {
    /// Prepares for reading, once the program is ready, and lets in who wants to be attached.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn attend(self, dir: &InstanceDir, launch: &Launch) -> io::Result<Attended> {
        let (outputs, input) = match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let outputs = [
                    Output::new(Some(stdout), OutputStream::Stdout)?,
                    Output::new(Some(stderr), OutputStream::Stderr)?,
                ];
                (outputs, stdin.map(Input::Pipe))
            }
            Self::Terminal(socket) => {
                // It was sent before the program was ready.
                let master = pty::take_over(socket.as_fd())?;
                let mut output = Output::new(Some(master.try_clone()?), OutputStream::Stdout)?;
                output._held_open = pty::hold_open(master.as_fd()).ok();
                let input = Input::Terminal { master, open: launch.stdin };
                ([output, Output::new(None, OutputStream::Stderr)?], Some(input))
            }
        };
        let audience = input.map(|input| Audience::open(dir, input)).transpose()?;
        Ok(Attended { outputs, audience })
    }
}
