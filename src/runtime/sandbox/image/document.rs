//! Manifests, indexes and configurations, as OCI and Docker write them.
//!
//! A document that can be read as two kinds is refused (CVE-2021-41190): what was signed or scanned as one could be run
//! as the other.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::bounds::MOST_LAYERS;
use super::digest::Digest;
use super::error::{ImageError, Result, quoted};
use super::platform::Platform;

/// Kinds of documents that are asked for.
pub const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: &[&str] =
    &["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: &[&str] =
    &["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// How kinds of layers begin; the compression that follows is told by the bytes themselves.
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// What a document refers to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// What kind it is.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it was built for.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// What else is said of it.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A document that a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several images of one name.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document that came as `declared`, where that was said.
    ///
    /// # Errors
    /// It is neither an index nor a manifest, could be both, or is not what it was declared as.
    pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Self> {
        let refused = |what: &str| Err(ImageError::refused(format!("the manifest is not one: {what}")));
        let raw: Raw = match serde_json::from_slice(bytes) {
            Ok(raw) => raw,
            Err(error) => return refused(&quoted(error.to_string())),
        };
        if raw.fs_layers.is_some() || raw.schema_version == 1 {
            return refused("it has Docker's first format, which nothing writes any more; push the image again");
        }
        if raw.schema_version != 2 {
            return refused(&format!("its schemaVersion is {}, not 2", raw.schema_version));
        }
        let kinds: Vec<&str> = [declared, raw.media_type.as_deref()].into_iter().flatten().collect();
        let is_any = |known: &[&str]| kinds.iter().any(|kind| known.contains(kind));
        match (raw.config, raw.layers, raw.manifests) {
            (None, None, Some(_)) if is_any(MANIFESTS) => refused("it says to be an image and is an index"),
            (None, None, Some(manifests)) => Ok(Self::Index(manifests)),
            (Some(_), _, None) if is_any(INDEXES) => refused("it says to be an index and is an image"),
            (Some(config), layers, None) => Manifest::new(config, layers.unwrap_or_default()).map(Self::Manifest),
            (None, _, None) => refused("it has neither a configuration nor manifests"),
            _ => refused("it can be read as an image and as an index"),
        }
    }
}

impl Manifest {
    fn new(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self> {
        if !config.media_type.is_empty() && !CONFIGS.contains(&config.media_type.as_str()) {
            let kind = quoted(&config.media_type);
            return Err(ImageError::refused(format!("it is no container image, its configuration is a {kind}")));
        }
        if let Some(layer) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            let kind = quoted(&layer.media_type);
            return Err(ImageError::refused(format!("the layer {} has the unknown type {kind}", layer.digest)));
        }
        most_layers(layers.len())?;
        Ok(Self { config, layers })
    }
}

/// Refuses more layers than can be stacked.
pub fn most_layers(count: usize) -> Result<()> {
    if count > MOST_LAYERS {
        return Err(ImageError::refused(format!("it has {count} layers; at most {MOST_LAYERS} can be stacked")));
    }
    Ok(())
}

fn is_layer(kind: &str) -> bool {
    kind.is_empty()
        || LAYERS.iter().any(|known| {
            kind.strip_prefix(known).is_some_and(|rest| matches!(rest, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd"))
        })
}

/// The configuration of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfigFile {
    /// What it was built for, as far as that is said.
    #[serde(flatten)]
    pub platform: Platform,
    /// How a container of it runs.
    #[serde(default)]
    pub config: Option<Config>,
    /// Its root file system.
    pub rootfs: RootFs,
}

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digests of the unpacked layers, the lowest first.
    #[serde(default)]
    pub diff_ids: Option<Vec<Digest>>,
}

/// How a container of an image runs where nothing else is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// `USER` or `USER:GROUP`.
    pub user: Option<String>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// Program and first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Further arguments.
    pub cmd: Option<Vec<String>>,
    /// Paths inside that get volumes of their own.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// Directory to start in.
    pub working_dir: Option<String>,
    /// Signal that asks it to end.
    pub stop_signal: Option<String>,
}

impl ConfigFile {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is none, or one of an image for another operating system.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let file: Self = serde_json::from_slice(bytes).map_err(|error| {
            ImageError::refused(format!("its configuration can't be read: {}", quoted(error.to_string())))
        })?;
        let os = &file.platform.os;
        if !matches!(os.as_str(), "" | "linux") {
            return Err(ImageError::refused(format!("it is for {}, this machine is linux", quoted(os))));
        }
        Ok(file)
    }

    /// Digests of the unpacked layers, the lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(kind: &str) -> serde_json::Value {
        json!({ "mediaType": kind, "digest": Digest::of(kind).to_string(), "size": 3 })
    }

    fn image() -> serde_json::Value {
        json!({ "schemaVersion": 2, "config": descriptor(CONFIGS[0]),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip")] })
    }

    fn parse(value: &serde_json::Value, declared: Option<&str>) -> Result<Document> {
        Document::parse(value.to_string().as_bytes(), declared)
    }

    #[test]
    fn images_and_indexes_are_told_apart() {
        let Document::Manifest(manifest) = parse(&image(), Some(MANIFESTS[0])).unwrap() else { panic!() };
        assert_eq!((manifest.layers.len(), manifest.config.size), (1, 3));
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFESTS[0])] });
        assert!(matches!(parse(&index, None), Ok(Document::Index(one)) if one.len() == 1));
    }

    #[test]
    fn what_could_be_two_things_is_refused() {
        let mut both = image();
        both["manifests"] = json!([descriptor(MANIFESTS[0])]);
        assert!(parse(&both, None).is_err());
        assert!(parse(&image(), Some(INDEXES[0])).is_err());
        let mut says = image();
        says["mediaType"] = INDEXES[1].into();
        assert!(parse(&says, Some(MANIFESTS[0])).is_err());
        assert!(Document::parse(br#"{"schemaVersion":2,"config":1,"config":2}"#, None).is_err());
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        let told = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = image();
            change(&mut value);
            parse(&value, None).unwrap_err().to_string()
        };
        assert!(
            told(&|value| value["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into())
                .contains("helm")
        );
        assert!(told(&|value| value["layers"][0]["mediaType"] = "application/x".into()).contains("application/x"));
        assert!(
            told(&|value| value["layers"][0]["digest"] = "sha256:../../x".into())
                .contains(r#""sha256:../../x" is not a digest"#)
        );
        assert!(
            told(&|value| value["layers"] = vec![descriptor(LAYERS[0]); MOST_LAYERS + 1].into()).contains("501 layers")
        );
        assert!(told(&|value| value["schemaVersion"] = 1.into()).contains("first format"));
        assert!(Document::parse(b"<html>", None).is_err());
    }

    #[test]
    fn configurations_with_nulls_are_read() {
        let text = json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": null },
                           "config": { "Cmd": ["sh"], "Entrypoint": null, "Volumes": { "/data": {} }, "Env": null } });
        let file = ConfigFile::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(file.diff_ids(), []);
        assert_eq!(file.config.unwrap().cmd.unwrap(), ["sh"]);
        assert!(ConfigFile::parse(br#"{"os":"windows","rootfs":{}}"#).is_err());
    }
}
