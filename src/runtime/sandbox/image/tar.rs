//! Entries of tar archives, read the way Go's archive/tar reads them, as Docker and containerd use that: what is scanned
//! or signed there must be what is unpacked here.
//!
//! The `tar` crate decodes the headers. The loop over them is written out, since its own one reads extended headers
//! of any length into memory, splits their records at line ends, which values of attributes may hold, and takes other
//! sizes for entries without content.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{GnuExtSparseHeader, Header};

use super::bounds::{LARGEST_EXTENSION, LONGEST_NAME, MOST_ATTRIBUTES, MOST_SEGMENTS};
use super::error::quoted;

/// Size of a block.
const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A further name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Something that no layer has; it is skipped.
    Unknown,
}

/// A piece of a sparse file that has content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name, as written.
    pub path: Vec<u8>,
    /// What it links to, as written.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Last modification: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file.
    pub size: u64,
    /// Pieces of a sparse file; a file without is one piece.
    pub sparse: Option<Vec<Segment>>,
}

/// An archive can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It is not what it has to be.
    #[error("{0}")]
    Malformed(String),
    /// Its bytes can't be had, also because what it is packed in is damaged.
    #[error("{0}")]
    Read(#[from] io::Error),
}

type Result<T> = std::result::Result<T, TarError>;

fn malformed<T>(what: impl Into<String>) -> Result<T> {
    Err(TarError::Malformed(what.into()))
}

/// Reads an archive entry by entry.
pub struct Reader<R> {
    inner: R,
    /// Content of the present entry that was not read yet.
    content: u64,
    /// What fills its last block.
    padding: u64,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extended {
    /// Long names in GNU's way, which win over those of POSIX.
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: SparseKeys,
}

/// What they say of a sparse file.
#[derive(Default)]
struct SparseKeys {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    map: Vec<u64>,
    known: bool,
}

impl<R: Read> Reader<R> {
    /// Reads an archive from its beginning.
    pub fn new(inner: R) -> Self {
        Self { inner, content: 0, padding: 0 }
    }

    /// What is read from; right after an entry, where its content begins.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next entry; what was not read of the last one's content is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = length(&header.as_old().size, "size")?;
            match header.as_old().linkflag[0] {
                b'x' => self.extension(size)?.read_pax(&mut extended)?,
                b'L' => extended.gnu_path = Some(self.extension(size)?.name()),
                b'K' => extended.gnu_link = Some(self.extension(size)?.name()),
                b'g' => self.begin(size),
                flag => return self.entry(&header, flag, size, extended).map(Some),
            }
        }
    }

    /// Reads the content of the last entry.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buffer)?;
        if read == 0 {
            return malformed("the archive ends in the middle of an entry");
        }
        self.content -= read as u64;
        Ok(read)
    }

    /// Reads what follows the last entry, and gives the reader back.
    pub fn finish(mut self) -> Result<R> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(self.inner)
    }

    fn begin(&mut self, size: u64) {
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK).saturating_sub(size) % BLOCK;
    }

    fn skip_content(&mut self) -> Result<()> {
        let left = self.content.saturating_add(self.padding);
        (self.content, self.padding) = (0, 0);
        if left > 0 && io::copy(&mut self.inner.by_ref().take(left), &mut io::sink())? != left {
            return malformed("the archive ends in the middle of an entry");
        }
        Ok(())
    }

    /// A block; `None` where the archive ends right before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK as usize]>> {
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(block.get_mut(filled..).unwrap_or_default())? {
                0 if filled == 0 => return Ok(None),
                0 => return malformed("the archive ends in the middle of a block"),
                read => filled += read,
            }
        }
        Ok(Some(block))
    }

    /// The next header; `None` at the end, which two empty blocks mark.
    fn header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|byte| *byte == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => malformed("an entry follows an empty block"),
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        if !has_right_sum(&header, &block) {
            return malformed("the checksum of a header is wrong");
        }
        Ok(Some(header))
    }

    /// The content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Extension> {
        if size > LARGEST_EXTENSION {
            return malformed(format!("an extended header has {size} bytes, more than {LARGEST_EXTENSION}"));
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.inner.by_ref().take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return malformed("the archive ends in the middle of an extended header");
        }
        self.content = 0;
        Ok(Extension(bytes))
    }

    fn entry(&mut self, header: &Header, flag: u8, size: u64, extended: Extended) -> Result<Entry> {
        let gnu = flag == b'S';
        let mut path = extended.gnu_path.or(extended.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match flag {
            // The oldest format has no other way to say so.
            0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => Kind::Unknown,
        };
        let mut size = extended.size.unwrap_or(size);
        match kind {
            Kind::File | Kind::Unknown => {}
            // These have no content, whatever is written.
            _ => size = 0,
        }
        let ext_blocks = if gnu { self.gnu_sparse(header)? } else { None };
        self.begin(size);
        let (sparse, real_size) = match (ext_blocks, extended.sparse.known && kind == Kind::File) {
            (Some((map, real)), _) => (Some(map), real),
            (None, true) => {
                let (map, real) = self.pax_sparse(&extended.sparse)?;
                (Some(map), real)
            }
            (None, false) => (None, size),
        };
        if let Some(map) = &sparse {
            check_map(map, self.content, real_size)?;
        }
        if let Some(name) = extended.sparse.name {
            path = name;
        }
        let old = header.as_old();
        let device = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        Ok(Entry {
            kind,
            path,
            link: extended
                .gnu_link
                .or(extended.link)
                .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            mode: u32::try_from(number(&old.mode, "mode")? & 0o7777).unwrap_or(0),
            uid: extended.uid.map_or_else(|| length(&old.uid, "owner"), Ok)?,
            gid: extended.gid.map_or_else(|| length(&old.gid, "group"), Ok)?,
            mtime: extended.mtime.map_or_else(|| number(&old.mtime, "time").map(|seconds| (seconds, 0)), Ok)?,
            device: (device(header.device_major()), device(header.device_minor())),
            xattrs: extended.xattrs.into_iter().collect(),
            size: real_size,
            sparse,
        })
    }

    /// The map of a sparse file in GNU's old format, and the file's length.
    fn gnu_sparse(&mut self, header: &Header) -> Result<Option<(Vec<Segment>, u64)>> {
        let Some(gnu) = header.as_gnu() else { return malformed("a sparse file has no header of GNU's") };
        let wrong = |_| TarError::Malformed("the map of a sparse file is wrong".to_owned());
        let mut map = Vec::new();
        let mut more = gnu.is_extended();
        let add = |map: &mut Vec<Segment>, sparse: &[tar::GnuSparseHeader]| -> Result<()> {
            for piece in sparse.iter().filter(|piece| !piece.is_empty()) {
                map.push(Segment { offset: piece.offset().map_err(wrong)?, length: piece.length().map_err(wrong)? });
            }
            most_segments(map.len())
        };
        add(&mut map, &gnu.sparse)?;
        while more {
            let Some(block) = self.block()? else { return malformed("the map of a sparse file is cut off") };
            let mut next = GnuExtSparseHeader::new();
            next.as_mut_bytes().copy_from_slice(&block);
            add(&mut map, next.sparse())?;
            more = next.is_extended();
        }
        Ok(Some((map, gnu.real_size().map_err(wrong)?)))
    }

    /// The map of a sparse file in one of the formats that extended headers carry, and the file's length.
    fn pax_sparse(&mut self, keys: &SparseKeys) -> Result<(Vec<Segment>, u64)> {
        let Some(real_size) = keys.real_size else { return malformed("a sparse file has no size") };
        let numbers = if keys.major == Some(1) { self.sparse_numbers()? } else { keys.map.clone() };
        let (pairs, rest) = numbers.as_chunks();
        if !rest.is_empty() {
            return malformed("the map of a sparse file has an odd number of numbers");
        }
        Ok((pairs.iter().map(|[offset, length]| Segment { offset: *offset, length: *length }).collect(), real_size))
    }

    /// Numbers at the beginning of the content: how many pairs there are, the pairs, and zeros up to a whole block.
    fn sparse_numbers(&mut self) -> Result<Vec<u64>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut text = Vec::new();
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK as usize];
            let mut filled = 0;
            while filled < block.len() {
                match self.read_content(block.get_mut(filled..).unwrap_or_default())? {
                    0 => return malformed("the map of a sparse file is cut off"),
                    read => filled += read,
                }
            }
            for byte in block {
                match byte {
                    b'0'..=b'9' if text.len() < 20 => text.push(byte),
                    b'\n' => {
                        let number =
                            decimal(&text).ok_or_else(|| TarError::Malformed("a sparse map is wrong".into()))?;
                        text.clear();
                        match wanted {
                            None => {
                                most_segments(usize::try_from(number).unwrap_or(usize::MAX))?;
                                wanted = usize::try_from(number).ok().map(|pairs| pairs * 2);
                            }
                            Some(wanted) if numbers.len() < wanted => numbers.push(number),
                            Some(_) => return malformed("the map of a sparse file is too long"),
                        }
                    }
                    0 if wanted.is_some_and(|wanted| numbers.len() == wanted) => {}
                    _ => return malformed("the map of a sparse file is wrong"),
                }
            }
        }
        Ok(numbers)
    }
}

/// The content of an extended header.
struct Extension(Vec<u8>);

impl Extension {
    /// A long name of GNU's: up to the first zero.
    fn name(self) -> Vec<u8> {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
    }

    /// Records of POSIX: a length, a blank, `KEY=VALUE`, a line end. The length counts all of it.
    fn read_pax(self, extended: &mut Extended) -> Result<()> {
        // Each header stands alone, and replaces what an earlier one said of the same entry.
        let (gnu_path, gnu_link) = (extended.gnu_path.take(), extended.gnu_link.take());
        *extended = Extended { gnu_path, gnu_link, ..Extended::default() };
        let mut rest = self.0.as_slice();
        while !rest.is_empty() {
            let (key, value, after) =
                record(rest).ok_or_else(|| TarError::Malformed("an extended header is wrong".into()))?;
            extended.take(key, value)?;
            rest = after;
        }
        Ok(())
    }
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..blank)?)?).ok()?;
    let body = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
    (!key.is_empty()).then_some((key, value, bytes.get(length..)?))
}

impl Extended {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || {
            decimal(value).ok_or_else(|| {
                TarError::Malformed(format!("{} of an extended header is {}, no number", quoted(key), quoted(value)))
            })
        };
        // An empty value takes back what was said before.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(number).transpose()?,
            b"uid" => self.uid = given.then(number).transpose()?,
            b"gid" => self.gid = given.then(number).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).flatten(),
            b"GNU.sparse.major" => (self.sparse.major, self.sparse.known) = (Some(number()?), true),
            b"GNU.sparse.minor" => {}
            b"GNU.sparse.name" => self.sparse.name = given.then(|| value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                (self.sparse.real_size, self.sparse.known) = (Some(number()?), true);
            }
            b"GNU.sparse.map" => {
                for text in value.split(|byte| *byte == b',').filter(|_| given) {
                    self.sparse
                        .map
                        .push(decimal(text).ok_or_else(|| TarError::Malformed("a sparse map is wrong".into()))?);
                }
                most_segments(self.sparse.map.len() / 2)?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.map.push(number()?);
                most_segments(self.sparse.map.len() / 2)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                    if self.xattrs.len() > MOST_ATTRIBUTES {
                        return malformed(format!("an entry has more than {MOST_ATTRIBUTES} extended attributes"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn most_segments(count: usize) -> Result<()> {
    if count > MOST_SEGMENTS {
        return malformed(format!("a sparse file has more than {MOST_SEGMENTS} pieces"));
    }
    Ok(())
}

/// Pieces follow each other, lie inside of the file, and together are the content.
fn check_map(map: &[Segment], content: u64, real_size: u64) -> Result<()> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for piece in map {
        let next = piece.offset.checked_add(piece.length).filter(|next| piece.offset >= end && *next <= real_size);
        let (Some(next), Some(total)) = (next, sum.checked_add(piece.length)) else {
            return malformed("the pieces of a sparse file overlap or lie outside of it");
        };
        (end, sum) = (next, total);
    }
    if sum != content {
        return malformed("the pieces of a sparse file are not its content");
    }
    Ok(())
}

fn decimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A number of a header: octal digits among blanks and zeros, nothing for zero, or big-endian after a mark.
fn number(field: &[u8], what: &str) -> Result<i64> {
    let wrong = || TarError::Malformed(format!("the {what} of an entry is no number"));
    if let Some((first @ 0x80.., rest)) = field.split_first() {
        // The second bit is the sign.
        let start = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(*first) - 0x100 };
        return rest
            .iter()
            .try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))
            .ok_or_else(wrong);
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = std::str::from_utf8(text.get(..end).unwrap_or_default().trim_ascii()).map_err(|_| wrong())?;
    if text.is_empty() { Ok(0) } else { i64::from_str_radix(text, 8).map_err(|_| wrong()) }
}

/// One that can't be negative.
fn length(field: &[u8], what: &str) -> Result<u64> {
    u64::try_from(number(field, what)?).or_else(|_| malformed(format!("the {what} of an entry is negative")))
}

/// Seconds with an optional fraction, before the epoch with a minus.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    if seconds.starts_with('-') && nanoseconds > 0 {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((whole, nanoseconds))
}

/// The sum of all bytes, where those of the sum itself count as blanks. Some old programs added them as signed.
fn has_right_sum(header: &Header, block: &[u8; BLOCK as usize]) -> bool {
    let bytes = || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: u32 = bytes().map(u32::from).sum();
    let signed: i32 = bytes().map(|byte| i32::from(byte.cast_signed())).sum();
    header.cksum().is_ok_and(|sum| sum == unsigned || i32::try_from(sum).is_ok_and(|sum| sum == signed))
}

/// The names of a path inside of a layer.
///
/// # Errors
/// It goes upwards, is too long, or holds a zero: the text says so.
pub fn names(path: &[u8]) -> std::result::Result<Vec<&[u8]>, &'static str> {
    if path.len() > LONGEST_NAME {
        return Err("its name is too long");
    }
    if path.contains(&0) {
        return Err("its name holds a zero byte");
    }
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) { Err("its name leads upwards") } else { Ok(names) }
}

#[cfg(test)]
mod tests;
