//! Unpacked layers: each once, whoever needs it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::archive::Section;
use super::decompress::{Bounded, unpacked};
use super::digest::{Digest, Hashing};
use super::document::Descriptor;
use super::error::{ImageError, Result};
use super::merged::Merged;
use super::store::{LayerRecord, Store, publish_tree};
use super::unpack::{Problem, Unpacked, unpack};
use crate::runtime::sandbox::fresh::{make_new, unique};
use crate::runtime::sandbox::remove;

/// A layer that an image needs.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest of its unpacked archive.
    pub diff: Digest,
    /// Digest of that and of all diff ids below it (the chain id; the lowest one's is its diff id), which names it where
    /// it is not the same everywhere.
    pub chain: Digest,
    /// Where its archive is.
    pub source: Source,
}

/// Where the archive of a layer is.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a registry.
    Remote(Descriptor),
    /// In a file of this machine, with its digest where one is told.
    Local(Section, Option<Digest>),
}

impl Layer {
    /// The layers of an image, the lowest first, from their diff ids and archives.
    ///
    /// # Errors
    /// There are not as many of one as of the other.
    pub fn of_image(diff_ids: &[Digest], sources: Vec<Source>) -> Result<Vec<Self>> {
        if diff_ids.len() != sources.len() {
            let (configured, there) = (diff_ids.len(), sources.len());
            return Err(ImageError::refused(format!("its configuration names {configured} layers, it has {there}")));
        }
        let mut chain: Option<Digest> = None;
        Ok(diff_ids
            .iter()
            .zip(sources)
            .map(|(diff, source)| {
                let next = match &chain {
                    None => diff.clone(),
                    Some(below) => Digest::of(format!("{below} {diff}")),
                };
                chain = Some(next.clone());
                Self { diff: diff.clone(), chain: next, source }
            })
            .collect())
    }

    /// Its digest as it is packed, where one is told.
    pub fn blob(&self) -> Option<&Digest> {
        match &self.source {
            Source::Remote(descriptor) => Some(&descriptor.digest),
            Source::Local(_, digest) => digest.as_ref(),
        }
    }

    /// Its length as it is packed.
    pub fn packed_size(&self) -> u64 {
        match &self.source {
            Source::Remote(descriptor) => descriptor.size,
            Source::Local(section, _) => section.length(),
        }
    }

    /// The directory that it is unpacked in already, where it was seen to come from this blob.
    pub fn present(&self, store: &Store) -> Option<String> {
        [false, true].map(|here| self.name(here)).into_iter().find(|name| self.is_known(store, name))
    }

    /// The name of its directory: for everywhere, or for where it lies `here` alone. The words before the digests keep
    /// a lowest layer, whose two digests are one, from being taken for the same layer above others.
    fn name(&self, here: bool) -> String {
        if here { format!("chain-{}", self.chain.hex()) } else { format!("diff-{}", self.diff.hex()) }
    }

    fn is_known(&self, store: &Store, name: &str) -> bool {
        let known = |layer: LayerRecord| self.blob().is_some_and(|blob| layer.blobs.contains(blob));
        store.layer(name).is_some_and(known)
    }
}

/// What came of unpacking a layer.
#[derive(Debug)]
pub enum Outcome {
    /// It lies in the directory of this name.
    Done(String),
    /// It needs the layers below.
    NeedsLower,
    /// The packed archive is not the one that the layer has; this is its digest.
    Damaged(Digest),
}

/// Unpacks a layer from its packed archive. The caller holds the lock of its diff id. `lower` are the layers below, the
/// uppermost first, where they are needed and there. It ends soon after it is `given_up`.
///
/// # Errors
/// `Refused` for an archive that must not be unpacked, or that is not what it is said to be.
pub fn install(
    store: &Store,
    layer: &Layer,
    archive: &Section,
    lower: Option<&[PathBuf]>,
    given_up: &AtomicBool,
) -> Result<Outcome> {
    let folder = new_folder(store).map_err(|error| ImageError::io("making a directory for a layer", &error))?;
    let result = install_in(store, layer, archive, lower, (&folder, given_up));
    if folder.exists() {
        // What is left is swept later.
        let _ = remove::tree(&folder);
    }
    result.map_err(|error| error.within(format!("the layer {}", layer.diff.short())))
}

/// An empty directory that nobody else uses.
fn new_folder(store: &Store) -> io::Result<PathBuf> {
    let folder = store.temporary().join(unique("layer")?);
    make_new(&folder)?;
    Ok(folder)
}

fn install_in(
    store: &Store,
    layer: &Layer,
    archive: &Section,
    lower: Option<&[PathBuf]>,
    (folder, given_up): (&Path, &AtomicBool),
) -> Result<Outcome> {
    let root = folder.join("root");
    make_new(&root).map_err(|error| ImageError::io(format!("making {}", root.display()), &error))?;
    let merged =
        lower.map(Merged::open).transpose().map_err(|error| ImageError::io("opening the layers below", &error))?;
    let is_other = |blob: &Digest| layer.blob().is_some_and(|wanted| wanted != blob);
    let Content { unpacked, diff, blob } = match read_through(archive, &root, merged.as_ref(), given_up) {
        Ok(content) => content,
        Err(Problem::NeedsLower) => return Ok(Outcome::NeedsLower),
        Err(_) if given_up.load(Ordering::Relaxed) => return Err(ImageError::Failed(GIVEN_UP.to_owned())),
        // What is wrong with it is its author's fault only where it is what its author made.
        Err(Problem::Refused(why)) => match packed_digest(archive)? {
            blob if is_other(&blob) => return Ok(Outcome::Damaged(blob)),
            _ => return Err(ImageError::Refused(why)),
        },
        Err(Problem::Disk(why)) => return Err(ImageError::Failed(why)),
    };
    if is_other(&blob) {
        return Ok(Outcome::Damaged(blob));
    }
    if diff != layer.diff {
        return Err(ImageError::refused(format!("its content is {diff}, and not {} as its image says", layer.diff)));
    }
    let name = layer.name(unpacked.needed_lower);
    let target = store.layers().join(&name);
    if target.exists() {
        // The same from another blob.
        store.add_blob(&name, &blob)?;
        return Ok(Outcome::Done(name));
    }
    let Unpacked { opaque, root, .. } = unpacked;
    store.write_layer(folder, &LayerRecord { blobs: vec![blob], opaque, root })?;
    publish_tree(folder, &target).map_err(|error| ImageError::io(format!("making {}", target.display()), &error))?;
    Ok(Outcome::Done(name))
}

/// The digest of an archive as it is packed.
///
/// # Errors
/// It can't be read.
pub fn packed_digest(archive: &Section) -> Result<Digest> {
    let mut packed = Hashing::new(archive.read());
    io::copy(&mut packed, &mut io::sink()).map_err(|error| ImageError::io("reading an archive", &error))?;
    Ok(packed.digest())
}

/// What an archive held.
struct Content {
    unpacked: Unpacked,
    diff: Digest,
    blob: Digest,
}

/// What is told where nobody waits any more.
const GIVEN_UP: &str = "nobody waits for it any more";

/// Reads until nobody waits any more.
struct Wanted<'a, R> {
    inner: R,
    given_up: &'a AtomicBool,
}

impl<R: Read> Read for Wanted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) { Err(io::Error::other(GIVEN_UP)) } else { self.inner.read(buffer) }
    }
}

/// Unpacks an archive, hashing it as it is packed and as it is not.
fn read_through(
    archive: &Section,
    root: &Path,
    lower: Option<&Merged>,
    given_up: &AtomicBool,
) -> std::result::Result<Content, Problem> {
    let damaged = |error: io::Error| Problem::Refused(error.to_string());
    let mut packed = Hashing::new(archive.read());
    let bounded = Bounded::new(unpacked(&mut packed).map_err(damaged)?, archive.length());
    let mut plain = Hashing::new(Wanted { inner: bounded, given_up });
    let result = unpack(&mut plain, root, lower)?;
    let diff = plain.digest();
    io::copy(&mut packed, &mut io::sink()).map_err(damaged)?;
    Ok(Content { unpacked: result, diff, blob: packed.digest() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_nobody_waits_for_is_given_up_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        store.prepare().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir("d", folder.path()).unwrap();
        let bytes = tar.into_inner().unwrap();
        let path = folder.path().join("layer.tar");
        fs::write(&path, &bytes).unwrap();
        let archive = Section::file(&path).unwrap();
        let diff = Digest::of(&bytes);
        let layer = Layer { chain: diff.clone(), source: Source::Local(archive.clone(), None), diff: diff.clone() };
        let count = |path: PathBuf| fs::read_dir(path).unwrap().count();
        let install = |given_up| install(&store, &layer, &archive, Some(&[]), &AtomicBool::new(given_up));
        let error = install(true).unwrap_err().to_string();
        assert!(error.ends_with(GIVEN_UP), "{error}");
        assert_eq!((count(store.layers()), count(store.temporary())), (0, 0));
        match install(false).unwrap() {
            Outcome::Done(name) => assert_eq!(name, format!("diff-{}", diff.hex())),
            other => panic!("{other:?}"),
        }
        assert_eq!((count(store.layers()), count(store.temporary())), (1, 0));
    }
}
