//! Images made in a test: layers, configuration, and every form that they come in.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// One layer under construction. Names are written as they are.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn add(self, kind: EntryType, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        self.add_of(0, kind, path, link, mode, content)
    }

    /// A directory that belongs to a user and its group.
    pub fn directory_of(self, owner: u64, path: &str, mode: u32) -> Self {
        self.add_of(owner, EntryType::Directory, path, "", mode, b"")
    }

    fn add_of(mut self, owner: u64, kind: EntryType, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_uid(owner);
        header.set_gid(owner);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.add(EntryType::Regular, path, "", 0o644, content.as_bytes())
    }

    pub fn directory(self, path: &str) -> Self {
        self.add(EntryType::Directory, path, "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, path, target, 0o777, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Link, path, target, 0o644, b"")
    }

    /// A layer with a shell and a user `web`.
    pub fn shell() -> Self {
        let busybox = std::fs::read("/bin/busybox").expect("a static busybox");
        let mut layer = Self::new()
            .directory("bin/")
            .add(EntryType::Regular, "bin/busybox", "", 0o755, &busybox)
            .directory("etc/")
            .file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
            .file("etc/group", "root:x:0:\nlogs:x:4:web\n");
        for name in ["sh", "ls", "cat", "id", "touch", "stat", "pwd", "test", "env", "sleep", "find", "wc"] {
            layer = layer.symlink(&format!("bin/{name}"), "busybox");
        }
        layer
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// How layers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Packing {
    fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => gzip(bytes),
            Self::Zstd => compress_to_vec(bytes, CompressionLevel::Fastest),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image.
#[derive(Clone)]
pub struct Image {
    /// Layers as they are packed, the lowest first.
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    plain: Vec<Vec<u8>>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

impl Image {
    /// An image of these layers that runs with this configuration.
    pub fn new(layers: Vec<Layer>, config: Value, packing: Packing) -> Self {
        Self::built_for(architecture(), layers, config, packing)
    }

    /// The same for a processor, as Go names it.
    pub fn built_for(architecture: &str, layers: Vec<Layer>, config: Value, packing: Packing) -> Self {
        let plain: Vec<Vec<u8>> = layers.into_iter().map(Layer::bytes).collect();
        let layers: Vec<Vec<u8>> = plain.iter().map(|bytes| packing.pack(bytes)).collect();
        let ids: Vec<String> = plain.iter().map(|bytes| digest(bytes)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let config = config.to_string().into_bytes();
        let described: Vec<Value> = layers.iter().map(|bytes| descriptor(packing.media_type(), bytes)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": described,
        });
        Self { layers, config, manifest: manifest.to_string().into_bytes(), plain }
    }

    /// A shell with this further layer, packed with gzip.
    pub fn with(layer: Layer) -> Self {
        Self::new(vec![Layer::shell(), layer], json!({}), Packing::Gzip)
    }

    /// Writes an OCI layout that has the image by this name.
    pub fn layout(&self, folder: &Path, name: &str) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for bytes in self.layers.iter().chain([&self.config, &self.manifest]) {
            std::fs::write(blobs.join(&digest(bytes)[7..]), bytes).unwrap();
        }
        let mut entry = descriptor(MANIFEST, &self.manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    /// Writes a tar file with an OCI layout.
    pub fn oci_archive(&self, path: &Path) {
        let folder = tempfile::tempdir().unwrap();
        self.layout(folder.path(), "only");
        let mut tar = Builder::new(std::fs::File::create(path).unwrap());
        tar.append_dir_all(".", folder.path()).unwrap();
        tar.finish().unwrap();
    }

    /// Writes a tar file as `docker save` did for long: a layer that comes twice is a link.
    pub fn docker_archive(&self, path: &Path) {
        let mut tar = Layer::new();
        let config = format!("{}.json", &digest(&self.config)[7..]);
        let mut names: Vec<String> = Vec::new();
        for (number, bytes) in self.plain.iter().enumerate() {
            let name = format!("{number}/layer.tar");
            tar = match self.plain.iter().position(|other| other == bytes) {
                Some(first) if first < number => tar.symlink(&name, &format!("../{first}/layer.tar")),
                _ => tar.add(EntryType::Regular, &name, "", 0o644, bytes),
            };
            names.push(name);
        }
        let list = json!([{ "Config": config, "RepoTags": ["app:1"], "Layers": names }]);
        let tar =
            tar.add(EntryType::Regular, &config, "", 0o644, &self.config).file("manifest.json", &list.to_string());
        std::fs::write(path, tar.bytes()).unwrap();
    }
}

/// This machine's instruction set, as Go names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
