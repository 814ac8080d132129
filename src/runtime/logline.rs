//! Lines of output, byte for byte, and how long ones are cut into pieces. Pure.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::io::OutputStream;

/// Longest text of a [`LogLine`], in bytes; a longer line comes as several. Four times what Docker and the CRI keep in one
/// record (16 KiB).
pub const LONGEST_LINE: usize = 64 << 10;

/// One line of output, or a piece of one that is longer than [`LONGEST_LINE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written.
    pub at: DateTime<Utc>,
    /// Where it was written.
    pub stream: OutputStream,
    /// The text, without the line break; see [`LogText`] for its form in JSON.
    #[serde(flatten)]
    pub text: LogText,
    /// Whether the line goes on, without a line break between, with the next text of the same stream. Not in JSON where it
    /// does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes_on: bool,
}

/// Bytes as they were written. In JSON a field `text` where they are UTF-8, else a field `base64` (RFC 4648, with padding).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct LogText(Vec<u8>);

/// How a text is spelled in JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spelled<'a> {
    Text(Cow<'a, str>),
    Base64(Cow<'a, str>),
}

impl LogText {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text for people: bytes that are no UTF-8 are replaced.
    pub fn lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for LogText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl PartialEq<&str> for LogText {
    fn eq(&self, text: &&str) -> bool {
        self.0 == text.as_bytes()
    }
}

impl From<Vec<u8>> for LogText {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for LogText {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for LogText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Spelled::Text(text.into()),
            Err(_) => Spelled::Base64(STANDARD.encode(&self.0).into()),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LogText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Spelled::deserialize(deserializer)? {
            Spelled::Text(text) => text.into_owned().into_bytes(),
            Spelled::Base64(text) => STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)?,
        }))
    }
}

/// A line that comes in parts and is given in pieces. Holds at most [`LONGEST_LINE`] bytes between two calls.
#[derive(Debug, Default)]
pub struct Pieces {
    held: Vec<u8>,
}

impl Pieces {
    /// Takes the next part of the line, and gives the pieces after which it goes on in any case: at least a byte is held
    /// back after the last one.
    pub fn push(&mut self, part: &[u8]) -> Vec<LogText> {
        self.held.extend_from_slice(part);
        let mut pieces = Vec::new();
        while self.held.len() > LONGEST_LINE {
            let rest = self.held.split_off(before_character(&self.held, LONGEST_LINE));
            pieces.push(std::mem::replace(&mut self.held, rest).into());
        }
        pieces
    }

    /// Gives what is left of the line, and begins with another one.
    pub fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// Where to cut a text that is longer than this, so that no character of UTF-8 is cut.
fn before_character(text: &[u8], most: usize) -> usize {
    let continues = |at: usize| text.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    (most.saturating_sub(3)..=most).rev().find(|at| !continues(*at)).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a line that comes in these parts.
    fn cut(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut pieces = Pieces::default();
        let mut found: Vec<Vec<u8>> =
            parts.iter().flat_map(|part| pieces.push(part)).map(|piece| piece.as_bytes().to_vec()).collect();
        found.push(pieces.end());
        found
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_pieces_that_are_the_same_together() {
        let longest = vec![b'x'; LONGEST_LINE];
        assert_eq!(cut(&[&longest, b""]), std::slice::from_ref(&longest));
        assert_eq!(cut(&[&longest, b"y"]), [longest.clone(), b"y".to_vec()]);
        assert_eq!(cut(&[&longest.repeat(3)]), [longest.clone(), longest.clone(), longest]);
        let parts = vec![&b"a bc"[..]; LONGEST_LINE];
        let pieces = cut(&parts);
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [LONGEST_LINE; 4]);
        assert_eq!(pieces.concat(), parts.concat());
    }

    #[test]
    fn no_character_is_cut() {
        for character in ["é", "€", "🦀"] {
            let text = format!("x{}", character.repeat(LONGEST_LINE));
            let pieces = cut(&[text.as_bytes()]);
            assert_eq!(pieces.concat(), text.as_bytes());
            assert!(pieces.iter().all(|piece| piece.len() <= LONGEST_LINE), "{character}");
            assert!(pieces.iter().all(|piece| std::str::from_utf8(piece).is_ok()), "{character}");
        }
        assert_eq!(cut(&[&[0x80; LONGEST_LINE + 1]]).iter().map(Vec::len).collect::<Vec<_>>(), [LONGEST_LINE, 1]);
    }

    #[test]
    fn lines_travel_as_text_or_in_base64() {
        let line = |bytes: &[u8], goes_on| LogLine {
            at: DateTime::UNIX_EPOCH,
            stream: OutputStream::Stdout,
            text: bytes.to_vec().into(),
            goes_on,
        };
        for (line, spelled) in [
            (line("gr\u{fc}n \u{fffd}".as_bytes(), false), serde_json::json!({"text": "gr\u{fc}n \u{fffd}"})),
            (line(b"a\xff\x00b", true), serde_json::json!({"base64": "Yf8AYg==", "goes_on": true})),
        ] {
            let mut expected = spelled;
            expected["at"] = "1970-01-01T00:00:00Z".into();
            expected["stream"] = "stdout".into();
            assert_eq!(serde_json::to_value(&line).unwrap(), expected);
            assert_eq!(serde_json::from_value::<LogLine>(expected).unwrap(), line);
        }
    }
}
