//! From a reference to one image: which documents describe it, and where its layers are.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::archive::{Archive, Section};
use super::bounds::{DEEPEST_INDEX, LARGEST_CONFIG, LARGEST_MANIFEST};
use super::digest::Digest;
use super::document::{Config, ConfigFile, Descriptor, Document, Manifest, most_layers};
use super::error::{ImageError, Result, quoted};
use super::layers::{Layer, Source};
use super::platform::Platform;
use super::reference::Selector;
use super::registry::Registry;
use super::store::Store;

/// Annotation with the name of an image inside of a layout.
const NAME: &str = "org.opencontainers.image.ref.name";

/// One image, described.
#[derive(Debug)]
pub struct Resolved {
    /// What the reference stands for now.
    pub source: String,
    /// Documents that describe it.
    pub documents: Vec<Vec<u8>>,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// How it runs where nothing else is said.
    pub config: Config,
    /// What it was built for, as it says itself.
    pub platform: Platform,
}

impl Resolved {
    fn new(source: String, manifest: Vec<u8>, config: Vec<u8>, sources: Vec<Source>) -> Result<Self> {
        let file = ConfigFile::parse(&config)?;
        let layers = Layer::of_image(file.diff_ids(), sources)?;
        let ConfigFile { platform, config: how, .. } = file;
        Ok(Self { source, documents: vec![manifest, config], layers, config: how.unwrap_or_default(), platform })
    }
}

/// Which image of an index is for this machine.
fn select(index: &[Descriptor]) -> Result<&Descriptor> {
    if let [only @ Descriptor { platform: None, .. }] = index {
        return Ok(only);
    }
    let own = Platform::own();
    own.choose(index.iter().filter_map(|one| Some((one.platform.as_ref()?, one)))).ok_or_else(|| {
        let there: BTreeSet<String> =
            index.iter().filter_map(|one| one.platform.as_ref()).map(|platform| quoted(platform.to_string())).collect();
        let there = there.into_iter().collect::<Vec<_>>().join(", ");
        ImageError::unavailable(format!("there is no image for {own}, only for: {there}"))
    })
}

fn too_deep<T>() -> Result<T> {
    Err(ImageError::refused(format!("its indexes are nested deeper than {DEEPEST_INDEX}")))
}

/// Finds out what an image of a registry consists of.
///
/// # Errors
/// The registry does not have it, or it is none for this machine.
pub async fn in_registry(registry: &Registry<'_>, selector: &Selector, store: &Store) -> Result<Resolved> {
    let first = registry.manifest(selector).await?;
    let source = first.digest.to_string();
    let mut bytes = first.bytes.to_vec();
    let mut declared = first.media_type;
    for _ in 0..DEEPEST_INDEX {
        let manifest = match Document::parse(&bytes, declared.as_deref())? {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let next = select(&index)?;
                declared = Some(next.media_type.clone()).filter(|kind| !kind.is_empty());
                bytes = match store.kept(&next.digest, LARGEST_MANIFEST) {
                    Some(kept) => kept,
                    None => registry.manifest(&Selector::Digest(next.digest.clone())).await?.bytes.to_vec(),
                };
                continue;
            }
        };
        let config = match store.kept(&manifest.config.digest, LARGEST_CONFIG) {
            Some(kept) => kept,
            None => registry.small(&manifest.config, LARGEST_CONFIG).await?.to_vec(),
        };
        let sources = manifest.layers.into_iter().map(Source::Remote).collect();
        return Resolved::new(source, bytes, config, sources);
    }
    too_deep()
}

/// An OCI layout: a directory, or a tar file with one.
#[derive(Debug)]
enum Layout {
    Folder(PathBuf),
    Archive(Archive),
}

impl Layout {
    fn file(&self, name: &str) -> Result<Section> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                Section::file(&path).map_err(|error| ImageError::unavailable(format!("{}: {error}", path.display())))
            }
            Self::Archive(archive) => archive.file(name),
        }
    }

    fn whole(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        self.file(name)?.whole(most).map_err(|error| ImageError::unavailable(format!("{name}: {error}")))
    }

    fn blob(&self, wanted: &Descriptor, most: u64) -> Result<Vec<u8>> {
        let bytes = self.whole(&blob_name(&wanted.digest), most)?;
        let digest = Digest::of(&bytes);
        if digest != wanted.digest {
            return Err(ImageError::refused(format!("{} has the content of {digest}", wanted.digest)));
        }
        Ok(bytes)
    }

    fn resolve(&self, source: String, tag: Option<&str>) -> Result<Resolved> {
        let index = self.whole("index.json", LARGEST_MANIFEST)?;
        let Document::Index(index) = Document::parse(&index, None)? else {
            return Err(ImageError::refused("its index.json is no index"));
        };
        let (bytes, manifest) = self.follow(named(&index, tag)?)?;
        let config = self.blob(&manifest.config, LARGEST_CONFIG)?;
        let sources = manifest
            .layers
            .iter()
            .map(|layer| Ok(Source::Local(self.file(&blob_name(&layer.digest))?, Some(layer.digest.clone()))));
        Resolved::new(source, bytes, config, sources.collect::<Result<_>>()?)
    }

    fn follow(&self, first: Descriptor) -> Result<(Vec<u8>, Manifest)> {
        let mut next = first;
        for _ in 0..DEEPEST_INDEX {
            let bytes = self.blob(&next, LARGEST_MANIFEST)?;
            let declared = Some(next.media_type.as_str()).filter(|kind| !kind.is_empty());
            match Document::parse(&bytes, declared)? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(index) => next = select(&index)?.clone(),
            }
        }
        too_deep()
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The image of a layout that has this name; without a name, the only one.
fn named(index: &[Descriptor], tag: Option<&str>) -> Result<Descriptor> {
    let name = |one: &Descriptor| one.annotations.as_ref().and_then(|all| all.get(NAME)).cloned();
    let all: BTreeSet<String> = index.iter().filter_map(name).collect();
    let listed = || quoted(all.iter().cloned().collect::<Vec<_>>().join(", "));
    let fitting: Vec<Descriptor> = match tag {
        Some(tag) => index.iter().filter(|one| name(one).as_deref() == Some(tag)).cloned().collect(),
        None if all.len() > 1 => {
            return Err(ImageError::unavailable(format!("it holds several images, name one of them: {}", listed())));
        }
        None => index.to_vec(),
    };
    match fitting.as_slice() {
        [] if index.is_empty() => Err(ImageError::unavailable("it holds no image")),
        [] => Err(ImageError::unavailable(format!("it holds no image of this name, only: {}", listed()))),
        [only] => Ok(only.clone()),
        several => select(several).cloned(),
    }
}

/// Finds out what an image of a layout directory consists of.
///
/// # Errors
/// It can't be read, or is none for this machine.
pub fn in_layout(path: &Path, tag: Option<&str>) -> Result<Resolved> {
    let layout = Layout::Folder(path.to_owned());
    layout.resolve(layout_state(path)?, tag)
}

/// What tells one state of a layout directory from another.
///
/// # Errors
/// It has no index.
pub fn layout_state(path: &Path) -> Result<String> {
    Ok(Digest::of(Layout::Folder(path.to_owned()).whole("index.json", LARGEST_MANIFEST)?).to_string())
}

/// Finds out what an image of a tar file with a layout consists of.
///
/// # Errors
/// It can't be read, or is none for this machine.
pub fn in_oci_archive(path: &Path, store: &Store) -> Result<Resolved> {
    let state = file_state(path)?;
    Layout::Archive(Archive::open(path, store)?).resolve(state, None)
}

/// What tells one state of a file from another.
///
/// # Errors
/// It is not there.
pub fn file_state(path: &Path) -> Result<String> {
    let data =
        std::fs::metadata(path).map_err(|error| ImageError::unavailable(format!("{}: {error}", path.display())))?;
    Ok(format!("{}:{}:{}:{}.{:09}", data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Saved {
    /// The only image of a file, which may have several names.
    fn only(images: Vec<Self>) -> Result<Self> {
        let configs: BTreeSet<&str> = images.iter().map(|image| image.config.as_str()).collect();
        if configs.len() > 1 {
            let name = |image: &Self| match image.repo_tags.as_deref().unwrap_or_default() {
                [] => image.config.clone(),
                tags => tags.join(", "),
            };
            let names = images.iter().map(name).collect::<Vec<_>>().join(", ");
            return Err(ImageError::unavailable(format!(
                "it holds several images: {}; save one of them in a file of its own (docker save -o FILE NAME)",
                quoted(names)
            )));
        }
        images.into_iter().next().ok_or_else(|| ImageError::unavailable("it holds no image"))
    }
}

/// Finds out what the only image of a file of `docker save` consists of.
///
/// # Errors
/// It can't be read, is none for this machine, or is one of several.
pub fn in_docker_archive(path: &Path, store: &Store) -> Result<Resolved> {
    let state = file_state(path)?;
    let archive = Archive::open(path, store)?;
    let whole = |name: &str, most| {
        archive.file(name)?.whole(most).map_err(|error| ImageError::refused(format!("{}: {error}", quoted(name))))
    };
    let list = whole("manifest.json", LARGEST_MANIFEST)?;
    let images: Vec<Saved> = serde_json::from_slice(&list).map_err(|error| {
        ImageError::refused(format!("its manifest.json can't be read: {}", quoted(error.to_string())))
    })?;
    let Saved { config, layers, .. } = Saved::only(images)?;
    let layers = layers.unwrap_or_default();
    most_layers(layers.len())?;
    let sources = layers.iter().map(|name| Ok(Source::Local(archive.file(name)?, None)));
    Resolved::new(state, list, whole(&config, LARGEST_CONFIG)?, sources.collect::<Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(name: &str, platform: Option<&str>) -> Descriptor {
        let platform = platform.map(|text| {
            let (os, architecture) = text.split_once('/').unwrap();
            json!({ "os": os, "architecture": architecture })
        });
        serde_json::from_value(json!({
            "digest": Digest::of(format!("{name}{platform:?}")).to_string(), "size": 1, "platform": platform,
            "annotations": { NAME: name },
        }))
        .unwrap()
    }

    #[test]
    fn a_file_of_docker_save_is_taken_where_it_holds_one_image() {
        let only = |images: serde_json::Value| {
            let images: Vec<Saved> = serde_json::from_value(images).unwrap();
            Saved::only(images).map(|image| image.config).map_err(|error| error.to_string())
        };
        let image = |config: &str, tags: &[&str]| json!({ "Config": config, "RepoTags": tags, "Layers": [] });
        assert_eq!(only(json!([image("a", &["x:1", "x:2"])])), Ok("a".to_owned()), "one image of two names");
        assert_eq!(only(json!([image("a", &["x:1"]), image("a", &["x:2"])])), Ok("a".to_owned()), "the same one");
        assert_eq!(only(json!([])), Err("it holds no image".to_owned()));
        let several = json!([image("a", &["x:1", "x:2"]), image("b", &[]), { "Config": "c", "RepoTags": null }]);
        let told = "it holds several images: x:1, x:2, b, c; save one of them in a file of its own \
                    (docker save -o FILE NAME)";
        assert_eq!(only(several), Err(told.to_owned()));
    }

    #[test]
    fn an_image_of_a_layout_is_found_by_name_and_machine() {
        let own = Platform::own().to_string();
        let own = own.rsplitn(2, "/v").last().unwrap();
        let one = descriptor("one", None);
        let index = [one.clone(), descriptor("two", Some("linux/other")), descriptor("two", Some(own))];
        assert_eq!(named(&index, Some("one")).unwrap(), one);
        assert_eq!(named(&index, Some("two")).unwrap(), index[2]);
        assert!(named(&index, None).unwrap_err().to_string().contains("one, two"));
        assert!(named(&index, Some("three")).unwrap_err().to_string().contains("one, two"));
        assert_eq!(named(&index[..1], None).unwrap(), one);
        assert_eq!(named(&[], None).unwrap_err().to_string(), "it holds no image");
        let foreign = [descriptor("x", Some("linux/other")), descriptor("x", Some("plan9/amd64"))];
        assert!(named(&foreign, Some("x")).unwrap_err().to_string().contains("linux/other, plan9/amd64"));
    }
}
