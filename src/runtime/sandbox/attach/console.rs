//! What the standard descriptors of a program are: pipes to its supervisor, or a terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::super::program::null;
use super::super::pty::{self, Size};
use super::super::record::{Identity, Launch, Root};
use super::super::sys;

/// Size of a terminal until somebody who is attached tells another one: that of the VT100 and of Docker.
const SIZE: Size = (80, 24);

/// The program's ends, held by the first process of an instance until it becomes the program.
#[derive(Debug)]
pub enum Console {
    /// Pipes.
    Pipes {
        /// Standard input: the null device where there is none.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal, which is made inside and handed to the supervisor through this socket.
    Terminal(OwnedFd),
}

/// The supervisor's ends.
#[derive(Debug)]
pub enum Held {
    /// Pipes.
    Pipes {
        /// Takes standard input, where it is kept open.
        stdin: Option<OwnedFd>,
        /// Gives standard output.
        stdout: OwnedFd,
        /// Gives standard error.
        stderr: OwnedFd,
    },
    /// Gives the terminal, once the first process has made it.
    Terminal(OwnedFd),
}

/// Makes both ends.
///
/// # Errors
/// No descriptor is left.
pub fn console(launch: &Launch) -> io::Result<(Held, Console)> {
    if launch.tty {
        let (taking, handing) = pty::channel()?;
        return Ok((Held::Terminal(taking), Console::Terminal(handing)));
    }
    let pipe = || io::pipe().map(|(read, write)| (OwnedFd::from(read), OwnedFd::from(write)));
    let (stdin, stdin_in) = match launch.stdin {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        // Opened here, where /dev is the machine's.
        false => (null()?, None),
    };
    let ((stdout, stdout_in), (stderr, stderr_in)) = (pipe()?, pipe()?);
    let held = Held::Pipes { stdin: stdin_in, stdout, stderr };
    Ok((held, Console::Pipes { stdin, stdout: stdout_in, stderr: stderr_in }))
}

impl Console {
    /// What it holds open.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Self::Terminal(socket) => vec![socket.as_fd()],
        }
    }

    /// Makes this the standard descriptors of this process, which leads a session.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn connect(&self, launch: &Launch, identity: &Identity) -> io::Result<()> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                sys::replace_standard(0, stdin.as_fd())?;
                sys::replace_standard(1, stdout.as_fd())?;
                sys::replace_standard(2, stderr.as_fd())
            }
            Self::Terminal(socket) => {
                let of_instance = launch.namespaces.mount && launch.root != Root::Shared;
                pty::connect(of_instance, SIZE, identity.uid, socket.as_fd())
            }
        }
    }
}
