//! Where images lie.
//!
//! ```text
//! ROOT/images/blobs/sha256/HEX    manifests and configurations; layers until they are unpacked
//!             blobs/sha256/.HEX   a layer on its way, resumed after a cut
//!             layers/NAME/root/   an unpacked layer: diff-HEX by its diff id, chain-HEX by its chain id where it would be
//!                                 another above others; root-MODE-UID-GID, the root directory of an image whose
//!                                 uppermost layer has none
//!             layers/NAME/layer.json  what is known of it
//!             records/HEX.json    an image by its name, whose digest names the file; its time is its last use
//!             locks/HEX           held while a blob is fetched or a layer unpacked
//!             tmp/                being made
//!             empty/              the layer of an image without any
//!             lock                shared by all that use images, exclusive while unused ones are removed
//! ```
//!
//! Everything is made under another name and renamed once it is complete and on the disk, so that what has its name is
//! right, whenever the power or the process goes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, utimensat};
use serde::{Deserialize, Serialize};

use super::bounds::LOCK_POLL;
use super::digest::Digest;
use super::document::Config;
use super::error::{ImageError, Result};
use super::platform::Platform;
use super::root::RootDirectory;
use crate::runtime::sandbox::fresh::unique;
use crate::runtime::sandbox::layout::{Durability, make_private, private_file, read_json, write_json};

/// Version of the records. Fields are only ever added, with a default. Those of the first version may name layers that
/// were made for the lowest place of another image.
const VERSION: u32 = 2;

/// Directories and files of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Version of the format.
    pub version: u32,
    /// Its name, as a spec has it.
    pub name: String,
    /// What the name stood for when the image came: the digest that a registry gave, or the state of a file.
    pub source: String,
    /// Documents that it consists of.
    pub documents: Vec<Digest>,
    /// Directories of its layers, the lowest first, each once.
    pub layers: Vec<String>,
    /// How it runs where nothing else is said.
    pub config: Config,
    /// What it was built for; empty where that was not written down.
    #[serde(default)]
    pub platform: Platform,
}

impl ImageRecord {
    /// A record of this version, of an image for any platform.
    pub fn new(name: &str, source: String, documents: Vec<Digest>, layers: Vec<String>, config: Config) -> Self {
        let platform = Platform::default();
        Self { version: VERSION, name: name.to_owned(), source, documents, layers, config, platform }
    }

    /// Whether its layers are right where they lie.
    const fn is_right(&self) -> bool {
        self.version >= VERSION || self.layers.len() <= 1
    }
}

/// What is known of an unpacked layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Blobs that were seen to hold it. An image that names another one has to show it: that it knows the layer's diff
    /// id does not mean that it has the content.
    pub blobs: Vec<Digest>,
    /// Whether it hides everything below.
    #[serde(default)]
    pub opaque: bool,
    /// The root directory, where the layer has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootDirectory>,
}

/// Keeps others out for as long as it is held.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// The images below the root of a sandbox runtime.
    pub fn new(root: &Path) -> Self {
        Self { root: root.join("images") }
    }

    /// The directory of all images.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories that always exist.
    ///
    /// # Errors
    /// They can't be made.
    pub fn prepare(&self) -> Result<()> {
        [self.blobs(), self.layers(), self.records(), self.locks(), self.temporary(), self.empty()]
            .iter()
            .try_for_each(|folder| make_private(folder))
            .map_err(|error| ImageError::io(format!("making {}", self.root.display()), &error))
    }

    /// Directory of blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// A blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// A blob on its way.
    pub fn part(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(format!(".{}", digest.hex()))
    }

    /// Directory of unpacked layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The root directory of an unpacked layer.
    pub fn layer_root(&self, name: &str) -> PathBuf {
        self.layers().join(name).join("root")
    }

    /// Directory of records.
    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    /// Directory of locks.
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// Directory of what is being made.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// An empty directory.
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.records().join(format!("{}.json", Digest::of(name).hex()))
    }

    /// The record of an image, where all of its layers are here and as they have to be.
    ///
    /// # Errors
    /// It can't be read, for a reason other than its content.
    pub fn record(&self, name: &str) -> Result<Option<ImageRecord>> {
        let path = self.record_path(name);
        let record: ImageRecord = match read_json(&path) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(None),
            // Broken content is as good as none: the image comes again.
            Err(error) if error.get_ref().is_some() || error.kind() == io::ErrorKind::InvalidData => return Ok(None),
            Err(error) => return Err(ImageError::io(format!("reading {}", path.display()), &error)),
        };
        let complete = record.layers.iter().all(|layer| self.layer_root(layer).is_dir());
        Ok((complete && record.name == name && record.is_right()).then_some(record))
    }

    /// Writes the record of an image.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write_record(&self, record: &ImageRecord) -> Result<()> {
        let path = self.record_path(&record.name);
        write_json(&path, record, Durability::Synced)
            .map_err(|error| ImageError::io(format!("writing {}", path.display()), &error))
    }

    /// Takes note that an image is used now.
    pub fn touch(&self, name: &str) {
        let now = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        // A time that can't be set makes the image go earlier, and come again.
        let _ = utimensat(CWD, self.record_path(name), &now, AtFlags::empty());
    }

    /// What is known of a layer, where it is unpacked.
    pub fn layer(&self, name: &str) -> Option<LayerRecord> {
        read_json(&self.layers().join(name).join("layer.json")).ok().flatten()
    }

    /// Takes note of a further blob that holds a layer.
    ///
    /// # Errors
    /// It can't be written.
    pub fn add_blob(&self, name: &str, blob: &Digest) -> Result<()> {
        let Some(mut layer) = self.layer(name) else { return Ok(()) };
        if layer.blobs.contains(blob) {
            return Ok(());
        }
        layer.blobs.push(blob.clone());
        self.write_layer(&self.layers().join(name), &layer)
    }

    /// Writes what is known of a layer into its directory.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write_layer(&self, folder: &Path, layer: &LayerRecord) -> Result<()> {
        let path = folder.join("layer.json");
        write_json(&path, layer, Durability::Synced)
            .map_err(|error| ImageError::io(format!("writing {}", path.display()), &error))
    }

    /// Root directories of the layers of an image, the uppermost first, without those that are hidden.
    pub fn lower(&self, record: &ImageRecord) -> Vec<PathBuf> {
        let mut lower = Vec::with_capacity(record.layers.len());
        for name in record.layers.iter().rev() {
            lower.push(self.layer_root(name));
            if self.layer(name).is_some_and(|layer| layer.opaque) {
                break;
            }
        }
        if lower.is_empty() {
            lower.push(self.empty());
        }
        lower
    }

    /// Keeps a document.
    ///
    /// # Errors
    /// It can't be written.
    pub fn keep(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.blob(&digest);
        if path.exists() {
            return Ok(digest);
        }
        let write = || {
            let temporary = self.temporary().join(unique("document")?);
            let mut file = private_file().create_new(true).open(&temporary)?;
            file.write_all(bytes)?;
            publish(&file, &temporary, &path)
        };
        write().map_err(|error| ImageError::io(format!("writing {}", path.display()), &error))?;
        Ok(digest)
    }

    /// A document that was kept.
    pub fn kept(&self, digest: &Digest, most: u64) -> Option<Vec<u8>> {
        use io::Read;
        let mut bytes = Vec::new();
        File::open(self.blob(digest)).ok()?.take(most + 1).read_to_end(&mut bytes).ok()?;
        // A disk may have lost what was written.
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Holds all images in place: none is removed while this is held.
    ///
    /// # Errors
    /// The lock can't be opened.
    pub fn lease(&self) -> Result<Lock> {
        let path = self.root.join("lock");
        let hold = || {
            let file = private_file().create(true).open(&path)?;
            rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared))?;
            Ok(Lock { _file: file })
        };
        hold().map_err(|error: io::Error| ImageError::io(format!("locking {}", path.display()), &error))
    }

    /// Keeps everybody else out, where nobody uses images at the moment.
    ///
    /// # Errors
    /// The lock can't be opened.
    pub fn exclusive(&self) -> Result<Option<Lock>> {
        let path = self.root.join("lock");
        try_lock(&path).map_err(|error| ImageError::io(format!("locking {}", path.display()), &error))
    }

    /// Waits until this is the only one that downloads a blob, in this and every other process. The lease keeps the
    /// lock's file from being removed.
    ///
    /// # Errors
    /// The lock can't be opened.
    pub async fn lock_blob(&self, digest: &Digest, lease: &Lock) -> Result<Lock> {
        self.lock(digest.hex(), lease).await
    }

    /// Waits until this is the only one that unpacks a layer, as for a blob. Whoever has it may wait for the lock of the blob,
    /// which has the same digest where it is not compressed.
    ///
    /// # Errors
    /// The lock can't be opened.
    pub async fn lock_layer(&self, diff: &Digest, lease: &Lock) -> Result<Lock> {
        self.lock(&format!("layer-{}", diff.hex()), lease).await
    }

    async fn lock(&self, name: &str, _lease: &Lock) -> Result<Lock> {
        let path = self.locks().join(name);
        loop {
            match try_lock(&path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => tokio::time::sleep(LOCK_POLL).await,
                Err(error) => return Err(ImageError::io(format!("locking {}", path.display()), &error)),
            }
        }
    }
}

fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = private_file().create(true).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives a complete file its name, which then survives a loss of power with all of its content.
pub fn publish(file: &File, temporary: &Path, path: &Path) -> io::Result<()> {
    file.sync_data()?;
    fs::rename(temporary, path)?;
    sync_parent(path)
}

/// Gives a complete directory tree its name, which then survives a loss of power with all of its content.
pub fn publish_tree(temporary: &Path, path: &Path) -> io::Result<()> {
    let folder = File::open(temporary)?;
    // One call for the whole file system is far cheaper than one for each of thousands of files.
    rustix::fs::syncfs(folder.as_fd())?;
    fs::rename(temporary, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_data())
}

/// Age of a file by its last modification.
pub fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}
