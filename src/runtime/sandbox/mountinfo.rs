//! The kernel's list of mounts (proc_pid_mountinfo(5)). Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The mounts of this process.
pub const OWN: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Its number, which no other mount has while it is there.
    pub number: u64,
    /// Which file system.
    pub device: Vec<u8>,
    /// Directory of it that is mounted.
    pub root: PathBuf,
    /// Where.
    pub place: PathBuf,
}

/// The mounts that a list tells of, in the order in which they were made.
pub fn parse(mountinfo: &[u8]) -> Vec<Mounted> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = fields.nth(1)?.to_vec();
        Some(Mounted { number, device, root: path(fields.next()?), place: path(fields.next()?) })
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// A path, in which blanks and the like are written as `\` and three octal digits.
fn path(written: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(bytes).into()
}
