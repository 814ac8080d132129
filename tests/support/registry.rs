//! A registry of images.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Debian's docker-registry on a free port of the loopback; it ends with the test.
pub struct Registry {
    process: Child,
    pub address: String,
    _dir: TempDir,
}

impl Registry {
    /// A registry for the users of this htpasswd file, or for everyone; `None`, with the reason printed, where it is not
    /// installed.
    pub fn start(htpasswd: &str) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            assert!(!crate::engine::required("docker"), "docker-registry is not installed");
            eprintln!("skipped: docker-registry is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let users = dir.path().join("htpasswd");
        std::fs::write(&users, htpasswd).unwrap();
        let auth = match htpasswd {
            "" => String::new(),
            _ => format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display()),
        };
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("data");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n{auth}",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, address, _dir: dir };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not answer");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A line of an htpasswd file: user `test` with the password `secret`, in bcrypt.
pub const HTPASSWD: &str = "test:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
