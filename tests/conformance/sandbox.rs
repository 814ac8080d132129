//! The sandbox runtime, on a root of its own; root or not, as the tests run.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use evenkeel::runtime::Runtime;
use evenkeel::runtime::sandbox::{SandboxConfig, SandboxRuntime};
use evenkeel::spec::Image;
use evenkeel::state::Owner;

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
        Some(image("oci:/layout:latest"))
    }

    fn abilities(&self) -> Abilities {
        Abilities { shared_networks: false, names_per_owner: false }
    }

    async fn close(self) {
        for owner in ["first", "second"] {
            let runtime = self.of(owner);
            for instance in runtime.list().await.map(|listing| listing.instances).unwrap_or_default() {
                let _ = runtime.remove(&instance.as_ref()).await;
            }
        }
    }
}

conformance!(Sandbox, tokio::test(flavor = "multi_thread"));
