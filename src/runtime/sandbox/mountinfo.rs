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
    /// Number of the mount that it is in.
    pub parent: u64,
    /// Which file system.
    pub device: Vec<u8>,
    /// Directory of it that is mounted.
    pub root: PathBuf,
    /// Where.
    pub place: PathBuf,
    /// Kind of the file system.
    pub kind: String,
    /// Options of the file system, with commas between them.
    pub options: String,
}

/// The mounts that a list tells of, in the order in which they were made.
pub fn parse(mountinfo: &[u8]) -> Vec<Mounted> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(mounted).collect()
}

/// What a line tells of. Lines that are not understood tell of nothing.
fn mounted(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let (number, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let device = fields.next()?.to_vec();
    let (root, place) = (path(fields.next()?), path(fields.next()?));
    // Optional fields make the first half of a line of varying length; a hyphen ends it.
    let mut second = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let (kind, _source) = (text(second.next()?), second.next());
    Some(Mounted { number, parent, device, root, place, kind, options: second.next().map(text).unwrap_or_default() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_and_without_optional_fields_and_another_one_is_left_out() {
        let text = b"nonsense\n22 20 8:2 /a\\134b\\9 /mnt/a\\040b rw shared:1 master:2 - ext4 /dev/sdb rw,x\n23 22 0:9 / /p rw - proc proc\n";
        let first = Mounted {
            number: 22,
            parent: 20,
            device: b"8:2".to_vec(),
            root: "/a\\b\\9".into(),
            place: "/mnt/a b".into(),
            kind: "ext4".to_owned(),
            options: "rw,x".to_owned(),
        };
        let second = Mounted {
            number: 23,
            parent: 22,
            device: b"0:9".to_vec(),
            root: "/".into(),
            place: "/p".into(),
            kind: "proc".to_owned(),
            options: String::new(),
        };
        assert_eq!(parse(text), [first, second]);
    }
}
