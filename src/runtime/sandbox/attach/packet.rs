//! What supervisors and those who are attached tell each other. A packet is one byte for its kind, and the rest.

use crate::runtime::io::OutputStream;

/// Largest text of one packet: small enough that the kernel takes it in one piece, whatever the machine's bounds are.
pub const MOST_TEXT: usize = 16 << 10;
/// Largest packet.
pub const LARGEST: usize = 1 + MOST_TEXT;

/// First packet of one who wants to see the output.
pub const WATCH: u8 = b'o';
/// First packet of one who wants to write to the program as well.
pub const WRITE: u8 = b'i';

const WELCOME: u8 = b'w';
const REFUSED: u8 = b'r';
const STDOUT: u8 = b'1';
const STDERR: u8 = b'2';
const LEFT_OUT: u8 = b'l';

/// What a supervisor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Output follows. With it comes the descriptor of the input, or of the terminal, where there is one to hand out.
    Welcome,
    /// Nothing follows; why.
    Refused(&'a str),
    /// A piece of output, of at most [`MOST_TEXT`] bytes.
    Output(OutputStream, &'a [u8]),
    /// So many bytes of output were not taken in time.
    LeftOut(u64),
}

impl<'a> Packet<'a> {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, rest) = match self {
            Self::Welcome => (WELCOME, &[][..]),
            Self::Refused(why) => (REFUSED, why.as_bytes()),
            Self::Output(OutputStream::Stdout, bytes) => (STDOUT, *bytes),
            Self::Output(OutputStream::Stderr, bytes) => (STDERR, *bytes),
            Self::LeftOut(count) => return [&[LEFT_OUT][..], &count.to_le_bytes()].concat(),
        };
        [&[kind], rest].concat()
    }

    /// Reads a packet; `None` where it is none.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match *kind {
            WELCOME => Self::Welcome,
            REFUSED => Self::Refused(std::str::from_utf8(rest).ok()?),
            STDOUT => Self::Output(OutputStream::Stdout, rest),
            STDERR => Self::Output(OutputStream::Stderr, rest),
            LEFT_OUT => Self::LeftOut(u64::from_le_bytes(rest.try_into().ok()?)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_sent() {
        for packet in [
            Packet::Welcome,
            Packet::Refused("no"),
            Packet::Output(OutputStream::Stdout, b"a\0b"),
            Packet::Output(OutputStream::Stderr, b""),
            Packet::LeftOut(1 << 40),
        ] {
            assert_eq!(Packet::parse(&packet.encode()), Some(packet.clone()));
        }
        for bytes in [&b""[..], b"x", b"l123"] {
            assert_eq!(Packet::parse(bytes), None);
        }
    }
}
