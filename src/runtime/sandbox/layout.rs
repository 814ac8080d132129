//! Where things lie on disk, and atomic files.
//!
//! ```text
//! ROOT/instances/NAME/record.json   identity and launch, written before anything else
//!                     run.json      who supervises and runs it, written before the program starts
//!                     stop.json     the order to stop, written before the supervisor is told
//!                     paused.json   there while it is paused by signals
//!                     stopping      the supervisor obeys that order
//!                     exit.json     how it ended, written last
//!                     lock          held by the supervisor
//!                     attach        socket of the supervisor, where its program has input or a terminal
//!                     logs/         output.log and its older parts
//!                     rootfs/       mount point; empty outside of the instance
//!                     upper/ work/  writable layer of an image
//!                     copy/         copy of an image, where there are no layers
//!                     anonymous/N/  its own volumes
//!                     exec/         requests and answers of commands that are being started
//!                     names/        its own hosts and resolv.conf
//! ROOT/instances/.new-*, .gone-*    being made, being removed
//! ROOT/volumes/DEPLOYMENT/NAME/     named volumes
//!                    .NAME.new      being made, being removed
//!                    .NAME.slot     whose slot the workspace NAME goes with (`workspace.rs`)
//! ROOT/volumes/.gone-*              being removed
//! ROOT/written/HASH                 links to paths that programs may write (`links.rs`)
//! ROOT/mount-points/                what images may lack, under all of their layers
//! ROOT/networks/BRIDGE/             networks of deployments (`network/attachment.rs`)
//! ROOT/images/                      images (`image/store.rs`)
//! ROOT/no-devices                   there while instances may have no devices of the machine
//! ROOT/ports.lock                   next port to assign
//! ROOT/wake                         written when instances changed, for other processes that watch
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use crate::runtime::files::{Durability, make_private, private_file, read_json, write_json};

/// Name of the layer of mount points: directories and empty files that something is mounted at in every instance, as the
/// lowest layer of images that lack them. Each is made once here, and not in the writable layer of every instance.
const MOUNT_POINTS: &str = "mount-points";
/// Directories in it.
const MOUNT_POINT_DIRECTORIES: &[&str] = &["dev", "etc", "proc", "sys"];
/// Files in it.
const MOUNT_POINT_FILES: &[&str] = &["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// Directories and files of a sandbox root.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Everything of this runtime.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of all instances.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// One instance, by its runtime id.
    pub fn instance(&self, runtime_id: &str) -> InstanceDir {
        InstanceDir(self.instances().join(runtime_id))
    }

    /// Named volumes of a deployment.
    pub fn volumes(&self, deployment: &str) -> PathBuf {
        self.all_volumes().join(deployment)
    }

    /// Named volumes of all deployments.
    pub fn all_volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// What is remembered of the paths of the machine that programs may write.
    pub fn written(&self) -> PathBuf {
        self.root.join("written")
    }

    /// Networks of all deployments.
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// The network with this bridge.
    pub fn network(&self, bridge: &str) -> PathBuf {
        self.networks().join(bridge)
    }

    /// Lock and counter of port numbers.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports.lock")
    }

    /// Whether instances may have no devices of the machine.
    pub fn denies_devices(&self) -> bool {
        self.root.join(super::devices::DENIED).exists()
    }

    /// File that is written when instances changed.
    pub fn wake(&self) -> PathBuf {
        self.root.join("wake")
    }

    /// Makes the directories that always exist.
    ///
    /// # Errors
    /// They can't be made.
    pub fn prepare(&self) -> io::Result<()> {
        make_private(&self.root)?;
        make_private(&self.instances())?;
        make_private(&self.networks())?;
        make_private(&self.all_volumes())?;
        // Without it, as on a disk that takes nothing more, instances make their own, and what runs is still seen.
        let _ = prepare_mount_points(&self.root.join(MOUNT_POINTS));
        Ok(())
    }

    /// Tells other processes that watch this root that something changed. They look at everything then, so a
    /// lost message costs time and never truth; errors are of no consequence.
    pub fn wake_others(&self) {
        // Written over: to make it anew costs the file system ten times as much.
        if let Ok(mut file) = private_file().create(true).truncate(false).open(self.wake()) {
            let _ = file.write_all(b"\n");
        }
    }
}

/// Makes the layer of mount points, as an image would have them, where it is not there.
fn prepare_mount_points(layer: &Path) -> io::Result<()> {
    if MOUNT_POINT_DIRECTORIES.iter().chain(MOUNT_POINT_FILES).all(|name| layer.join(name).exists()) {
        return Ok(());
    }
    make_private(layer)?;
    let directories = MOUNT_POINT_DIRECTORIES.iter().map(|name| layer.join(name));
    for directory in [layer.to_owned()].into_iter().chain(directories) {
        make_private(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    }
    for name in MOUNT_POINT_FILES {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(layer.join(name))?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Directory of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceDir(pub PathBuf);

impl InstanceDir {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Identity and launch.
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// Who supervises and runs it.
    pub fn run(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// There until the program is executed: a supervisor that attends it may still find that it can't be.
    pub fn starting(&self) -> PathBuf {
        self.0.join("starting")
    }

    /// The order to stop.
    pub fn stop(&self) -> PathBuf {
        self.0.join("stop.json")
    }

    /// There once the supervisor obeys the order to stop. An order without it was never delivered: whoever gave it was
    /// killed before the supervisor was told.
    pub fn stopping(&self) -> PathBuf {
        self.0.join("stopping")
    }

    /// There while it is paused by signals.
    pub fn paused(&self) -> PathBuf {
        self.0.join("paused.json")
    }

    /// Which process connects its network, where pasta does.
    pub fn pasta(&self) -> PathBuf {
        self.0.join("pasta.json")
    }

    /// How it ended.
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Held by the supervisor.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Output.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Mount point of the root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// The layer of mount points of its root; `None` where that has none.
    pub fn mount_points(&self) -> Option<PathBuf> {
        let layer = self.0.parent()?.parent()?.join(MOUNT_POINTS);
        layer.is_dir().then_some(layer)
    }

    /// What was written over an image.
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    /// Its own copy of an image.
    pub fn copy(&self) -> PathBuf {
        self.0.join("copy")
    }

    /// One of its own files about names.
    pub fn name_file(&self, name: &str) -> PathBuf {
        self.0.join("names").join(name)
    }

    /// Commands that are being started.
    pub fn exec(&self) -> PathBuf {
        self.0.join("exec")
    }

    /// What overlayfs keeps for itself.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// One of its own volumes.
    pub fn anonymous(&self, number: usize) -> PathBuf {
        self.all_anonymous().join(number.to_string())
    }

    /// All of its own volumes.
    pub fn all_anonymous(&self) -> PathBuf {
        self.0.join("anonymous")
    }
}

/// Has the records of an instance that ended survive a loss of power. Until it ends nothing of it needs to: a reboot ends it
/// anyway.
///
/// # Errors
/// The disk does not take it.
pub fn keep(dir: &InstanceDir) -> io::Result<()> {
    let (record, exit) = (dir.record(), dir.exit());
    let parts = [Some(record.as_path()), Some(exit.as_path()), Some(dir.path()), dir.path().parent()];
    // What can't be kept hinders no other part.
    parts.into_iter().flatten().map(|part| File::open(part)?.sync_data()).fold(Ok(()), io::Result::and)
}
