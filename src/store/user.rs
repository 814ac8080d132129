//! Users of the machine, for messages.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Where the machine's own users are named. Those of a directory service (LDAP) are told by their number.
const PASSWD: &str = "/etc/passwd";

/// Most of it that is read, in bytes: some ten thousand users.
const MAX_PASSWD: u64 = 1 << 20;

/// A user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Number (uid).
    pub id: u32,
    /// Name; absent where none is found.
    pub name: Option<String>,
}

impl User {
    /// The user with this number.
    pub(super) fn of(id: u32) -> Self {
        let mut text = Vec::new();
        let read = File::open(Path::new(PASSWD)).and_then(|file| file.take(MAX_PASSWD).read_to_end(&mut text));
        let name = read.ok().and_then(|_| name_in(&String::from_utf8_lossy(&text), id));
        Self { id, name }
    }

    /// As `sudo -u` takes it.
    pub(super) fn for_sudo(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("'#{}'", self.id))
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// The name in the first line of this number (passwd(5)).
fn name_in(passwd: &str, id: u32) -> Option<String> {
    let id = id.to_string();
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1) == Some(&id)).then(|| name.to_owned())
    };
    passwd.lines().find_map(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_told_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# note\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(name_in(passwd, 100), None);
        let known = User { id: 1000, name: Some("ann".to_owned()) };
        assert_eq!((known.to_string(), known.for_sudo()), ("ann (1000)".to_owned(), "ann".to_owned()));
        let unknown = User { id: 7, name: None };
        assert_eq!((unknown.to_string(), unknown.for_sudo()), ("7".to_owned(), "'#7'".to_owned()));
    }
}
