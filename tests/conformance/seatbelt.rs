//! The sandbox runtime of macOS, on every Unix: with a launcher that applies no profile, so that all but the confinement is
//! shown; on macOS with the system's.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use evenkeel::runtime::Runtime;
use evenkeel::runtime::seatbelt::{PROGRAM, SeatbeltConfig, SeatbeltRuntime};
use evenkeel::spec::Image;
use evenkeel::state::Owner;

use crate::harness::{Abilities, Harness, Program, shell};

/// Called with `-f PROFILE PROGRAM ARGUMENTS`, as the system's is.
const WITHOUT_PROFILE: &str = "#!/bin/sh\nshift 2\nexec \"$@\"\n";

struct Seatbelt(tempfile::TempDir);

impl Seatbelt {
    fn of(&self, owner: &str) -> Arc<dyn Runtime> {
        let launcher = if cfg!(target_os = "macos") { PROGRAM.into() } else { self.0.path().join("launcher") };
        let config = SeatbeltConfig {
            root: self.0.path().join("sandbox"),
            supervisor: PathBuf::from(env!("CARGO_BIN_EXE_keel")),
            launcher,
            owner: Owner(owner.to_owned()),
            hidden: Vec::new(),
        };
        Arc::new(SeatbeltRuntime::open(config).expect("a runtime"))
    }
}

fn image(name: &str) -> Image {
    Image { name: name.parse().expect("an image"), pull_policy: None }
}

#[async_trait]
impl Harness for Seatbelt {
    const NAME: &'static str = "seatbelt";

    async fn open() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let launcher = folder.path().join("launcher");
        let made = std::fs::write(&launcher, WITHOUT_PROFILE)
            .and_then(|()| std::fs::set_permissions(&launcher, PermissionsExt::from_mode(0o755)));
        made.map(|()| Self(folder)).map_err(|error| error.to_string())
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
        Some(image("docker-archive:/no/such/archive.tar"))
    }

    fn command(&self, program: &Program) -> Vec<String> {
        // Processor time is told as ps(1) does, on Linux in whole seconds.
        let busy = "echo armed; while :; do echo tick; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; done";
        match program {
            Program::Ticks => ["/bin/sh", "-c", busy].map(str::to_owned).to_vec(),
            other => shell(other),
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities { shared_networks: false, names_per_owner: true, tells_memory_kills: true }
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

conformance!(Seatbelt, tokio::test(flavor = "multi_thread"));
