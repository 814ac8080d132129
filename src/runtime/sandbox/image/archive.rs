//! Tar files that hold an image: where each part lies, without unpacking them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::bounds::{LARGEST_LAYER, MOST_ARCHIVED, MOST_LINKS};
use super::decompress::{Bounded, unpacked};
use super::error::{ImageError, Result, quoted};
use super::store::Store;
use super::tar::{Kind, Reader, names};
use crate::runtime::sandbox::fresh::unique;
use crate::runtime::sandbox::layout::private_file;

/// Size of reads while looking through an archive.
const BUFFER: usize = 128 << 10;

/// A part of an open file.
#[derive(Debug, Clone)]
pub struct Section {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl Section {
    /// A whole file, which must be a regular one.
    ///
    /// # Errors
    /// It is not there, or something else.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), offset: 0, length })
    }

    /// Its length.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads it from its beginning.
    pub fn read(&self) -> SectionReader {
        SectionReader { section: self.clone(), at: 0 }
    }

    /// All of it, where that is no more than `most` bytes.
    pub fn whole(&self, most: u64) -> io::Result<Vec<u8>> {
        if self.length > most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")));
        }
        let mut bytes = Vec::new();
        self.read().read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads a [`Section`].
#[derive(Debug)]
pub struct SectionReader {
    section: Section,
    at: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.section.length - self.at).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let read = self.section.file.read_at(buffer, self.section.offset + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Opens a regular file, without waiting for what is none.
fn open(path: &Path) -> io::Result<File> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The files of an archive.
#[derive(Debug)]
pub struct Archive {
    entries: HashMap<Vec<u8>, Place>,
}

#[derive(Debug, Clone)]
enum Place {
    File(Section),
    Link(Vec<u8>),
}

impl Archive {
    /// Looks at a tar file. One that is packed is unpacked beside the images first.
    ///
    /// # Errors
    /// It can't be read, or is no tar file.
    pub fn open(path: &Path, store: &Store) -> Result<Self> {
        let unreadable = |error: io::Error| ImageError::unavailable(format!("{}: {error}", path.display()));
        let file = open(path).map_err(unreadable)?;
        let file = plain(file, store).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge | io::ErrorKind::UnexpectedEof => {
                ImageError::refused(format!("{}: {error}", path.display()))
            }
            _ => unreadable(error),
        })?;
        Self::index(file).map_err(|error| error.within(path.display()))
    }

    fn index(file: File) -> Result<Self> {
        let file = Arc::new(file);
        let mut position = Counting { inner: BufReader::with_capacity(BUFFER, &*file), at: 0 };
        let wrong = |error: super::tar::TarError| ImageError::refused(format!("it is no image archive: {error}"));
        position.inner.rewind().map_err(|error| ImageError::io("reading it", &error))?;
        let mut reader = Reader::new(position);
        let mut entries = HashMap::new();
        let mut count = 0;
        while let Some(entry) = reader.next_entry().map_err(wrong)? {
            count += 1;
            if count > MOST_ARCHIVED {
                return Err(ImageError::refused(format!("it has more than {MOST_ARCHIVED} entries")));
            }
            let Ok(parts) = names(&entry.path) else { continue };
            let path = parts.join(&b'/');
            match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    let section = Section { file: Arc::clone(&file), offset: reader.get_ref().at, length: entry.size };
                    entries.insert(path, Place::File(section));
                }
                Kind::Symlink => {
                    let folder = parts.split_last().map_or(&[][..], |(_, folder)| folder);
                    entries.insert(path, Place::Link(resolved(folder, &entry.link)));
                }
                Kind::HardLink => {
                    let target = names(&entry.link).unwrap_or_default().join(&b'/');
                    entries.insert(path, Place::Link(target));
                }
                _ => {}
            }
        }
        Ok(Self { entries })
    }

    /// A file of the archive, by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&self, name: &str) -> Result<Section> {
        let missing = || ImageError::refused(format!("it has no file {}", quoted(name)));
        let mut name = names(name.as_bytes()).map_err(|_| missing())?.join(&b'/');
        for _ in 0..MOST_LINKS {
            match self.entries.get(&name) {
                Some(Place::File(section)) => return Ok(section.clone()),
                Some(Place::Link(target)) => name = target.clone(),
                None => break,
            }
        }
        Err(missing())
    }
}

/// Where a link leads, from its folder.
fn resolved(folder: &[&[u8]], target: &[u8]) -> Vec<u8> {
    let mut folder = folder.to_vec();
    for name in super::merged::link_names(target) {
        if name == b".." {
            folder.pop();
        } else {
            folder.push(name);
        }
    }
    folder.join(&b'/')
}

/// The file itself where it is not packed, else its content in a file without a name.
fn plain(mut file: File, store: &Store) -> io::Result<File> {
    let mut start = [0; 6];
    let read = file.read(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    let start = start.get(..read).unwrap_or_default();
    // A tar file begins with a name, which is text.
    if !matches!(
        start,
        [0x1f, 0x8b, ..] | [_, 0xb5, 0x2f, 0xfd, ..] | [0xfd, b'7', ..] | [b'B', b'Z', b'h', b'0'..=b'9', b'1', ..]
    ) {
        return Ok(file);
    }
    let length = file.metadata()?.len();
    let path = store.temporary().join(unique("archive")?);
    let mut whole = private_file().read(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    io::copy(&mut Bounded::new(unpacked(file)?, length).take(LARGEST_LAYER), &mut whole)?;
    Ok(whole)
}

/// Knows how much was read.
#[derive(Debug)]
pub struct Counting<R> {
    inner: R,
    at: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}
