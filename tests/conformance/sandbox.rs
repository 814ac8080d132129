//! The sandbox runtime, on a root of its own; root or not, as the tests run. Once with the machine's own programs, and
//! once with an image, which holds a static busybox.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use evenkeel::runtime::sandbox::{SandboxConfig, SandboxRuntime};
use evenkeel::runtime::{Runtime, Volumes};
use evenkeel::spec::Image;
use evenkeel::state::Owner;
use sha2::{Digest, Sha256};

use crate::harness::{Abilities, Harness};

struct Sandbox(tempfile::TempDir);

impl Sandbox {
    fn of(&self, owner: &str) -> Arc<dyn Runtime> {
        let config = SandboxConfig {
            root: self.0.path().join("sandbox"),
            supervisor: PathBuf::from(env!("CARGO_BIN_EXE_keel")),
            owner: Owner(owner.to_owned()),
            hidden: Vec::new(),
        };
        Arc::new(SandboxRuntime::open(config).expect("a sandbox runtime"))
    }
}

fn image(name: &str) -> Image {
    Image { name: name.parse().expect("an image"), pull_policy: None }
}

#[async_trait]
impl Harness for Sandbox {
    const NAME: &'static str = "sandbox";

    async fn open() -> Result<Self, String> {
        tempfile::tempdir().map(Self).map_err(|error| error.to_string())
    }

    async fn runtime(&self) -> Arc<dyn Runtime> {
        self.of("first")
    }

    async fn stranger(&self) -> Arc<dyn Runtime> {
        self.of("second")
    }

    fn image(&self) -> Image {
        image("host")
    }

    fn missing_image(&self) -> Image {
        image("dir:/no/such/root")
    }

    fn unsupported_image(&self) -> Option<Image> {
        None
    }

    fn abilities(&self) -> Abilities {
        Abilities { shared_networks: false, names_per_owner: false, tells_memory_kills: true, keeps_bytes: true }
    }

    async fn close(self) {
        for owner in ["first", "second"] {
            let runtime = self.of(owner);
            for instance in runtime.list().await.map(|listing| listing.instances).unwrap_or_default() {
                let _ = runtime.remove(&instance.as_ref()).await;
            }
            // Takes networks away that have no instance any more.
            let _ = runtime.teardown("none", Volumes::Keep).await;
        }
    }
}

/// The same with an image.
struct SandboxImage(Sandbox);

impl SandboxImage {
    fn archive(&self) -> PathBuf {
        self.0.0.path().join("busybox.tar")
    }
}

/// Writes an image with a shell, as `docker save` does.
fn write_image(path: &Path) -> std::io::Result<()> {
    let file = |builder: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        builder.append_data(&mut header, name, content)
    };
    let mut layer = tar::Builder::new(Vec::new());
    file(&mut layer, "bin/busybox", 0o755, &std::fs::read("/bin/busybox")?)?;
    file(&mut layer, "etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\n")?;
    for name in ["sh", "cat", "sleep"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    let layer = layer.into_inner()?;
    let diff = Sha256::digest(&layer).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"));
    let config = serde_json::json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff] } });
    let list = serde_json::json!([{ "Config": "config.json", "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    file(&mut archive, "layer.tar", 0o644, &layer)?;
    file(&mut archive, "config.json", 0o644, config.to_string().as_bytes())?;
    file(&mut archive, "manifest.json", 0o644, list.to_string().as_bytes())?;
    std::fs::write(path, archive.into_inner()?)
}

#[async_trait]
impl Harness for SandboxImage {
    const NAME: &'static str = "sandbox_image";

    async fn open() -> Result<Self, String> {
        let harness = Self(Sandbox::open().await?);
        write_image(&harness.archive()).map_err(|error| format!("no image with /bin/busybox: {error}"))?;
        Ok(harness)
    }

    async fn runtime(&self) -> Arc<dyn Runtime> {
        self.0.runtime().await
    }

    async fn stranger(&self) -> Arc<dyn Runtime> {
        self.0.stranger().await
    }

    fn image(&self) -> Image {
        image(&format!("docker-archive:{}", self.archive().display()))
    }

    fn missing_image(&self) -> Image {
        image("docker-archive:/no/such/archive.tar")
    }

    fn unsupported_image(&self) -> Option<Image> {
        None
    }

    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    async fn close(self) {
        self.0.close().await;
    }
}

mod host {
    use super::Sandbox;

    conformance!(Sandbox, tokio::test(flavor = "multi_thread"));
}

mod images {
    use super::SandboxImage;

    conformance!(SandboxImage, tokio::test(flavor = "multi_thread"));
}
