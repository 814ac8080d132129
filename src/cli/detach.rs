//! The keys that detach from a terminal: control-P and then control-Q, as with Docker.

/// Control-P.
const FIRST: u8 = 0x10;
/// Control-Q.
const SECOND: u8 = 0x11;

/// Finds the keys among what is typed.
#[derive(Debug, Default)]
pub struct DetachKeys {
    /// Whether the first one was typed, which is held back until the next key is known.
    half: bool,
}

/// What becomes of what was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// It goes to the program.
    Input(Vec<u8>),
    /// So does this, and then the keys came.
    Detached(Vec<u8>),
}

impl DetachKeys {
    /// Takes what was typed.
    pub fn take(&mut self, typed: &[u8]) -> Typed {
        let mut input = Vec::with_capacity(typed.len() + 1);
        for key in typed.iter().copied() {
            match (std::mem::take(&mut self.half), key) {
                (true, SECOND) => return Typed::Detached(input),
                (half, key) => {
                    if half {
                        input.push(FIRST);
                    }
                    match key {
                        FIRST => self.half = true,
                        key => input.push(key),
                    }
                }
            }
        }
        Typed::Input(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reaches the program of pieces that are typed, and whether they detach.
    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut input) = (DetachKeys::default(), Vec::new());
        for piece in pieces {
            match keys.take(piece) {
                Typed::Input(bytes) => input.extend(bytes),
                Typed::Detached(bytes) => {
                    input.extend(bytes);
                    return (input, true);
                }
            }
        }
        (input, false)
    }

    #[test]
    fn both_keys_one_after_the_other_detach() {
        assert_eq!(typed(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"ab\x10", b"\x11"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }

    #[test]
    fn each_of_them_alone_is_input() {
        assert_eq!(typed(&[b"\x11a"]), (b"\x11a".to_vec(), false));
        assert_eq!(typed(&[b"\x10", b"a"]), (b"\x10a".to_vec(), false));
        assert_eq!(typed(&[b"\x10a\x11"]), (b"\x10a\x11".to_vec(), false));
    }
}
