//! Names that nobody uses or used before. The number of a process does not make one: the first process of a container
//! has the same number each time, and would go on with what a killed one left.

use std::fmt::Write;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

/// Random bytes of a name: nobody guesses them, and no two names have the same.
const RANDOM_BYTES: usize = 16;

/// A name that begins with a prefix and the number of this process, for people, and that no other call of any process
/// ever gives.
///
/// # Errors
/// The kernel gives no random numbers.
pub fn unique(prefix: &str) -> io::Result<String> {
    let mut bytes = [0u8; RANDOM_BYTES];
    // So few bytes come all at once (getrandom(2)).
    retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    let mut name = format!("{prefix}-{}-", std::process::id());
    for byte in bytes {
        let _ = write!(name, "{byte:02x}");
    }
    Ok(name)
}

/// Makes a directory for this user alone, in one that exists.
///
/// # Errors
/// It can't be made; `AlreadyExists` where anything has its name, which is somebody else's then.
pub fn make_new(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_given_twice_and_what_exists_is_nobodys_new_directory() {
        let (one, other) = (unique("x").unwrap(), unique("x").unwrap());
        let start = format!("x-{}-", std::process::id());
        assert!(one.starts_with(&start) && one.len() == start.len() + 2 * RANDOM_BYTES, "{one}");
        assert_ne!(one, other);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(one);
        make_new(&path).unwrap();
        assert_eq!(make_new(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
