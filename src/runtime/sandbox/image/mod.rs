//! Images: fetched by name, kept by digest, unpacked once per layer.
//!
//! The way of an image: a reference is resolved to a manifest (`resolve.rs`), by a registry (`registry.rs`) or from a
//! file of this machine (`archive.rs`); its layers are fetched (`download.rs`), unpacked (`tar.rs`, `unpack.rs`), and kept
//! (`store.rs`, `layers.rs`); what it says about running it becomes part of the request (`defaults.rs`). `pull.rs` puts
//! this together, `collect.rs` removes what nothing needs any more.
//!
//! The registry protocol is written out upon hyper, and not taken from `oci-client`: that shows credentials to whatever
//! server a registry names, reads answers of any length into memory, and follows redirects on its own, all of which a
//! hostile registry makes use of. Of the documents only the few fields that matter are read, so that what could be
//! read in two ways can be refused, which the types of `oci-spec` do not tell.

mod archive;
mod attributes;
mod authorize;
mod bounds;
mod challenge;
mod collect;
mod decompress;
mod defaults;
mod digest;
mod document;
mod download;
mod error;
mod http;
mod layers;
mod merged;
mod platform;
mod pull;
mod reference;
mod registry;
mod resolve;
mod root;
mod store;
mod tar;
pub mod tree;
mod tries;
mod unpack;

use std::path::{Path, PathBuf};

pub use defaults::filled;
pub use document::Config;
pub use merged::{Merged, is_opaque, is_whiteout, path_names};
pub use pull::Images;
pub use registry::{Access, CERTIFICATES};
pub use store::Lock;

use self::platform::Platform;
use super::users::Users;
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::spec::ImageRef;
use crate::state::Condition;

/// Where users and groups are looked up.
const TABLES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Unpacks the archive of a lowest layer, plain or packed, into an empty directory, as images are unpacked.
///
/// # Errors
/// Why it must not be unpacked, by the name of the entry, or what this machine had against it.
pub fn unpack_layer(archive: &[u8], target: &Path) -> std::result::Result<(), String> {
    let plain = decompress::unpacked(archive).map_err(|error| error.to_string())?;
    let bounded = decompress::Bounded::new(plain, archive.len() as u64);
    match unpack::unpack(bounded, target, Some(&Merged::default())) {
        Ok(_) => Ok(()),
        Err(unpack::Problem::Refused(why) | unpack::Problem::Disk(why)) => Err(why),
        Err(unpack::Problem::NeedsLower) => Err("it needs layers below".to_owned()),
    }
}

/// An image that instances can be made of.
#[derive(Debug)]
pub struct Ready {
    /// Root directories of its layers, the uppermost first; never empty.
    pub lower: Vec<PathBuf>,
    /// How it runs where nothing else is said.
    pub config: Config,
    /// What it was built for.
    platform: Platform,
    /// Keeps it from being removed until an instance is there that names it.
    _lease: Lock,
}

impl Images {
    /// An image as it is kept; `None` for what is no image in the store.
    ///
    /// # Errors
    /// `ImageUnavailable` where it is not here.
    pub fn ready(&self, image: &ImageRef) -> Result<Option<Ready>> {
        match image {
            ImageRef::Host | ImageRef::Dir(_) => return Ok(None),
            ImageRef::Registry(_) | ImageRef::Oci { .. } | ImageRef::OciArchive(_) | ImageRef::DockerArchive(_) => {}
        }
        let name = image.to_string();
        let missing = || {
            RuntimeError::new(
                ErrorKind::ImageUnavailable,
                format!("image {name} is not here; it has to be pulled first"),
            )
        };
        if !self.store().root().exists() {
            return Err(missing());
        }
        let lease = self.store().lease().map_err(error::ImageError::told)?;
        let record = self.store().record(&name).map_err(error::ImageError::told)?.ok_or_else(missing)?;
        self.store().touch(&name);
        let (lower, platform) = (self.store().lower(&record), record.platform);
        Ok(Some(Ready { lower, config: record.config, platform, _lease: lease }))
    }
}

impl Ready {
    /// A condition where it is for another processor, whose programs may not run here: some 64-bit ones run those for 32 bits,
    /// which only their start tells, and the kernel may have been given an emulator.
    pub fn foreign(&self) -> Option<Condition> {
        let own = Platform::own();
        let message = || {
            let built = error::quoted(self.platform.to_string());
            format!(
                "the image is for {built} and this machine is {own}: its programs start only where its processor runs those \
                 of the other as well, or the machine emulates it (binfmt_misc); else use an image for {own}"
            )
        };
        (!own.runs(&self.platform)).then(|| Condition::holds("Degraded", "ImagePlatform", message()))
    }

    /// The users and groups of the image.
    ///
    /// # Errors
    /// The layers can't be opened.
    pub fn users(&self) -> std::io::Result<Users> {
        let merged = Merged::open(&self.lower)?;
        let [passwd, group] = TABLES.map(|path| merged.open_file(&merged::path_names(path)).ok().flatten());
        Ok(Users::of_files(passwd, group))
    }
}
