//! Where things lie on disk.
//!
//! ```text
//! ROOT/no-devices                          there while instances may have no devices of the machine
//! ROOT/ports.lock                          next port to assign
//! ROOT/OWNER/changed                       written when an instance changed, for every process that watches
//! ROOT/OWNER/volumes/DEPLOYMENT/NAME/      named volumes
//! ROOT/OWNER/workspaces/DEPLOYMENT/NAME/   workspaces of slots
//! ROOT/OWNER/instances/NAME/record.json    identity and launch, written before anything else
//!                           run.json       when it started, and its process
//!                           orders.json    what its supervisor is to do
//!                           paused         there while it is frozen
//!                           exit.json      how it ended, written last
//!                           alive          locked by the supervisor
//!                           profile.sb     what it may do
//!                           root/ tmp/     its copy of the image, its scratch space
//!                           anonymous/N/   its own volumes
//!                           commands/      what runs inside besides its program, a key each
//!                           making         locked while it is made
//!                           logs/          output.log and its older parts
//! ROOT/OWNER/instances/.gone-*             being removed
//! ```

use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::files::{is_plain_name, make_private, private_file};
use crate::state::Owner;

/// Name of the file that forbids devices.
const NO_DEVICES: &str = "no-devices";

/// Directories and files of one owner below a root.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    own: PathBuf,
}

impl Layout {
    /// Where things of an owner lie.
    ///
    /// # Errors
    /// `InvalidInput` where the owner can't be the name of a directory.
    pub fn new(root: &Path, owner: &Owner) -> io::Result<Self> {
        if !is_plain_name(&owner.0) {
            let message = format!("{:?} can't be the name of a directory", owner.0);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(Self { root: root.to_owned(), own: root.join(&owner.0) })
    }

    /// Makes the directories that are always there.
    ///
    /// # Errors
    /// One can't be made.
    pub fn prepare(&self) -> io::Result<()> {
        make_private(&self.instances())?;
        self.tell()
    }

    /// Where instances lie.
    pub fn instances(&self) -> PathBuf {
        self.own.join("instances")
    }

    /// One instance.
    pub fn instance(&self, name: &str) -> InstanceDir {
        InstanceDir(self.instances().join(name))
    }

    /// Named volumes of a deployment.
    pub fn volumes(&self, deployment: &str) -> PathBuf {
        self.own.join("volumes").join(deployment)
    }

    /// Workspaces of the slots of a deployment.
    pub fn workspaces(&self, deployment: &str) -> PathBuf {
        self.own.join("workspaces").join(deployment)
    }

    /// The next port to assign.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports.lock")
    }

    /// What is watched for changes.
    pub fn changed(&self) -> PathBuf {
        self.own.join("changed")
    }

    /// Wakes everybody who watches.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn tell(&self) -> io::Result<()> {
        use std::io::Write;
        private_file().create(true).truncate(true).open(self.changed())?.write_all(b".")
    }

    /// Whether the operator denies devices and graphics.
    pub fn denies_devices(&self) -> bool {
        self.root.join(NO_DEVICES).exists()
    }
}

/// Remembers in a root whether instances may have devices and graphics processors of the machine.
///
/// # Errors
/// The root can't be written.
pub fn allow_devices(root: &Path, allowed: bool) -> io::Result<()> {
    make_private(root)?;
    let path = root.join(NO_DEVICES);
    match allowed {
        false => private_file().create(true).truncate(true).open(path).map(drop),
        true => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

/// Files of one instance.
#[derive(Debug, Clone)]
pub struct InstanceDir(pub PathBuf);

impl InstanceDir {
    /// Identity and launch.
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// When it started, and its process.
    pub fn run(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// What its supervisor is to do.
    pub fn orders(&self) -> PathBuf {
        self.0.join("orders.json")
    }

    /// There while it is frozen.
    pub fn paused(&self) -> PathBuf {
        self.0.join("paused")
    }

    /// How it ended.
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Locked by the supervisor.
    pub fn alive(&self) -> PathBuf {
        self.0.join("alive")
    }

    /// What it may do.
    pub fn profile(&self) -> PathBuf {
        self.0.join("profile.sb")
    }

    /// Its copy of the image.
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// Its scratch space.
    pub fn scratch(&self) -> PathBuf {
        self.0.join("tmp")
    }

    /// Further commands that run inside, a file each, until the program has ended.
    pub fn commands(&self) -> PathBuf {
        self.0.join("commands")
    }

    /// The same afterwards, when none may be added.
    pub fn last_commands(&self) -> PathBuf {
        self.0.join("last-commands")
    }

    /// Locked while it is made.
    pub fn making(&self) -> PathBuf {
        self.0.join("making")
    }

    /// Its output.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Wakes everybody who watches; what can't be told is found at the next look.
    pub fn tell(&self) {
        if let Some(own) = self.0.parent().and_then(Path::parent) {
            let _ = std::fs::write(own.join("changed"), ".");
        }
    }
}
