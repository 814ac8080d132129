//! Users and groups by name, looked up in the instance's root file system.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::record::Identity;

/// Largest part of a passwd or group file that is read, in bytes: a file of a foreign image must not be able to
/// take memory at will.
const LARGEST_TABLE: u64 = 1 << 20;

/// A user or group can't be found; the text says which and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownUser(pub String);

/// Tables of users and groups.
#[derive(Debug, Default)]
pub struct Users {
    passwd: String,
    group: String,
}

impl Users {
    /// Reads the tables below a root; a table that is missing, or is no plain file, is empty.
    pub fn read(root: BorrowedFd<'_>) -> Self {
        Self { passwd: table(root, "etc/passwd"), group: table(root, "etc/group") }
    }

    /// Reads the tables from these files.
    pub fn of_files(passwd: Option<File>, group: Option<File>) -> Self {
        let text = |file: Option<File>| file.map(bounded).unwrap_or_default();
        Self { passwd: text(passwd), group: text(group) }
    }

    /// Who `user` (`USER` or `USER:GROUP`, by name or number; root when absent) and the extra groups are.
    ///
    /// # Errors
    /// A name is not in the tables, or a number can't be an id.
    pub fn identity(&self, user: Option<&str>, extra_groups: &[String]) -> Result<Identity, UnknownUser> {
        let user = user.unwrap_or("0");
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let number = id(user, "user")?;
        let entry = match number {
            Some(uid) => find(&self.passwd, 2, &uid.to_string()),
            None => find(&self.passwd, 0, user),
        };
        let field = |index: usize| entry.as_ref().and_then(|fields| fields.get(index).copied());
        let entered =
            |index: usize, what: &str| field(index).map_or(Ok(None), |text| entered(text, what, user, "passwd"));
        let uid = match number.map_or_else(|| entered(2, "user"), |uid| Ok(Some(uid)))? {
            Some(uid) => uid,
            None => {
                return Err(UnknownUser(format!(
                    "user {user:?} is not in /etc/passwd of the image; write a number or a user that it has"
                )));
            }
        };
        let gid = match group {
            Some(group) => self.group(group)?,
            None => entered(3, "group")?.unwrap_or(0),
        };
        let mut groups = Vec::new();
        if let (Some(name), None) = (field(0), group) {
            groups.extend(self.memberships(name)?);
        }
        for group in extra_groups {
            groups.push(self.group(group)?);
        }
        groups.sort_unstable();
        groups.dedup();
        let home = field(5).filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
        Ok(Identity { uid, gid, groups, home })
    }

    fn group(&self, group: &str) -> Result<u32, UnknownUser> {
        if let Some(gid) = id(group, "group")? {
            return Ok(gid);
        }
        let fields = find(&self.group, 0, group);
        let found = fields.as_ref().and_then(|fields| fields.get(2)).map(|gid| entered(gid, "group", group, "group"));
        found.transpose()?.flatten().ok_or_else(|| {
            UnknownUser(format!(
                "group {group:?} is not in /etc/group of the image; write a number or a group that it has"
            ))
        })
    }

    fn memberships(&self, name: &str) -> Result<Vec<u32>, UnknownUser> {
        self.group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
            .filter_map(|fields| {
                entered(fields.get(2)?, "group", fields.first().copied().unwrap_or_default(), "group").transpose()
            })
            .collect()
    }
}

/// Reads a number that is an id; `None` for a name. The highest number means "no change" to the kernel and is
/// refused together with all that overflow.
fn id(text: &str, what: &str) -> Result<Option<u32>, UnknownUser> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id < u32::MAX => Ok(Some(id)),
        _ => Err(UnknownUser(format!("{what} {text} is out of range; ids go from 0 to {}", u32::MAX - 1))),
    }
}

/// The same of an entry of a table of the image.
fn entered(text: &str, what: &str, name: &str, table: &str) -> Result<Option<u32>, UnknownUser> {
    id(text, what).map_err(|UnknownUser(why)| UnknownUser(format!("{name:?} in /etc/{table} of the image: {why}")))
}

fn find<'a>(table: &'a str, column: usize, value: &str) -> Option<Vec<&'a str>> {
    table.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.get(column) == Some(&value))
}

fn table(root: BorrowedFd<'_>, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let Ok(file) = openat2(root, path, flags, Mode::empty(), resolve) else { return String::new() };
    let plain = fstat(file.as_fd()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if plain { bounded(file.into()) } else { String::new() }
}

fn bounded(file: File) -> String {
    let mut bytes = Vec::new();
    let _ = file.take(LARGEST_TABLE).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\n".into(),
            group: "root:x:0:\nlogs:x:4:web,other\nweb:x:34:\n".into(),
        }
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn names_and_numbers_are_found() {
        let users = users();
        assert_eq!(users.identity(None, &[]).unwrap(), identity(0, 0, &[], "/root"));
        assert_eq!(users.identity(Some("web"), &[]).unwrap(), identity(33, 34, &[4], "/srv"));
        assert_eq!(users.identity(Some("33"), &["root".into()]).unwrap(), identity(33, 34, &[0, 4], "/srv"));
        assert_eq!(users.identity(Some("web:logs"), &[]).unwrap(), identity(33, 4, &[], "/srv"));
        assert_eq!(users.identity(Some("1000"), &[]).unwrap(), identity(1000, 0, &[], "/"));
    }

    #[test]
    fn an_id_that_overflows_is_refused_and_never_root() {
        for user in ["4294967295", "4294967296", "99999999999999999999"] {
            assert!(users().identity(Some(user), &[]).unwrap_err().0.contains("out of range"), "{user}");
        }
    }

    #[test]
    fn an_id_of_a_table_that_overflows_is_refused_where_it_is_meant() {
        let users = Users {
            passwd: "all:x:4294967295:0::/:\nweb:x:33:4294967295::/:\nlog:x:34:34::/:\n".into(),
            group: "none:x:4294967295:log\nmany:x:99999999999:\n".into(),
        };
        for (user, names) in [
            ("all", "\"all\" in /etc/passwd of the image: user 4294967295 is out of range"),
            ("web", "\"web\" in /etc/passwd of the image: group 4294967295 is out of range"),
            ("log", "\"none\" in /etc/group of the image: group 4294967295 is out of range"),
            ("web:none", "\"none\" in /etc/group of the image: group 4294967295 is out of range"),
            ("log:many", "\"many\" in /etc/group of the image: group 99999999999 is out of range"),
        ] {
            let told = users.identity(Some(user), &[]).unwrap_err().0;
            assert!(told.starts_with(names), "{user}: {told}");
        }
        assert_eq!(users.identity(Some("web:4"), &[]).unwrap(), identity(33, 4, &[], "/"), "the entry's is not used");
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        assert!(users().identity(Some("nobody"), &[]).unwrap_err().0.contains("\"nobody\""));
        assert!(users().identity(Some("web:cats"), &[]).unwrap_err().0.contains("\"cats\""));
    }
}
