//! The machine's table of hosts (hosts(5)), which its resolver asks about no name that ends with a dot.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

/// Where it is.
const PATH: &str = "/etc/hosts";
/// Most of it that is read, in bytes: lists of blocked hosts have some MB.
const LONGEST: u64 = 16 << 20;

/// Addresses that the machine's administrator gave a name, which is in lower case.
pub fn find(name: &str) -> Vec<IpAddr> {
    let mut text = Vec::new();
    // Where it can't be read there are none.
    let _ = File::open(PATH).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    addresses(&String::from_utf8_lossy(&text), name)
}

fn addresses(text: &str, wanted: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = words.next()?;
            words.any(|name| name.eq_ignore_ascii_case(wanted)).then(|| address.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_addresses_of_its_lines() {
        let text =
            "127.0.0.1\tlocalhost db\n# 10.0.0.1 db\n10.0.0.2 other # db\nfd00::1 x DB\nbroken db\n10.0.0.3 dbx db.x\n";
        let found = |name: &str| addresses(text, name).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(found("db"), ["127.0.0.1", "fd00::1"]);
        assert_eq!(found("other"), ["10.0.0.2"]);
        assert_eq!(found("10.0.0.2"), Vec::<String>::new());
    }
}
