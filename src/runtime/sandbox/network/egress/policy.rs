//! Which hosts may be reached: pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::address::{Realm, is_number, meant, of_numbers, realm};

/// Rules as they are written in `sandbox.allow_hosts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Hosts that may be reached.
    pub allow: Vec<Rule>,
    /// Hosts that may not, whatever the others say.
    pub deny: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Which hosts.
    pub hosts: Hosts,
    /// Which port; any when absent.
    pub port: Option<u16>,
}

/// Hosts that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hosts {
    /// All.
    Any,
    /// This one.
    Named(String),
    /// Those below this one, and not it itself.
    Below(String),
    /// This address.
    Address(IpAddr),
}

/// A host that somebody wants to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// By name, in lower case and without a dot at its end.
    Name(String),
    /// By address.
    Address(IpAddr),
}

/// Why a host is not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A rule denies it.
    #[error("sandbox.allow_hosts denies it")]
    Denied,
    /// No rule allows it.
    #[error("sandbox.allow_hosts does not allow it")]
    NotAllowed,
    /// Its address is none of the internet.
    #[error("its address is that of a private network, of this machine or of its cloud's services")]
    NotPublic,
}

impl Host {
    /// Reads the host of a URL or of an authority.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical()));
        }
        let name = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
        let is_letter = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
        // A name with an empty label would be another text for a host that a rule names.
        let is_label = |label: &str| !label.is_empty() && label.chars().all(is_letter);
        if is_number(&name) {
            return of_numbers(&name).map(|address| Self::Address(address.into()));
        }
        (name.len() <= 253 && name.split('.').all(is_label)).then_some(Self::Name(name))
    }
}

impl Rule {
    /// Reads a rule, without the `!` of one that denies.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        let hosts = match (host, host.strip_prefix("*.")) {
            ("*", _) => Hosts::Any,
            (_, Some(domain)) => match Host::parse(domain)? {
                Host::Name(name) => Hosts::Below(name),
                Host::Address(_) => return None,
            },
            (host, None) => match Host::parse(host)? {
                Host::Name(name) => Hosts::Named(name),
                Host::Address(address) => Hosts::Address(address),
            },
        };
        Some(Self { hosts, port })
    }

    fn holds(&self, host: &Host, port: u16) -> bool {
        let is_meant = match (&self.hosts, host) {
            (Hosts::Any, _) => true,
            (Hosts::Named(named), Host::Name(name)) => named == name,
            (Hosts::Below(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Hosts::Address(one), Host::Address(other)) => one == other,
            (Hosts::Named(_) | Hosts::Below(_), Host::Address(_)) | (Hosts::Address(_), Host::Name(_)) => false,
        };
        is_meant && self.port.is_none_or(|own| own == port)
    }
}

impl Policy {
    /// Reads rules; those that begin with `!` deny.
    ///
    /// # Errors
    /// The number of the first that is none.
    pub fn parse(lines: &[String]) -> Result<Self, usize> {
        let mut policy = Self::default();
        for (index, line) in lines.iter().enumerate() {
            let (list, text) = match line.strip_prefix('!') {
                Some(text) => (&mut policy.deny, text),
                None => (&mut policy.allow, line.as_str()),
            };
            list.push(Rule::parse(text).ok_or(index)?);
        }
        Ok(policy)
    }

    /// Whether a rule denies a host, in whatever form its address is written.
    fn denies(&self, host: &Host, port: u16) -> bool {
        let meant = match host {
            Host::Address(address) => Host::Address(meant(*address)),
            Host::Name(_) => host.clone(),
        };
        self.deny.iter().any(|rule| rule.holds(host, port) || rule.holds(&meant, port))
    }

    /// Whether a host may be looked up and reached on a port.
    ///
    /// # Errors
    /// It may not.
    pub fn host(&self, host: &Host, port: u16) -> Result<(), Refusal> {
        if self.denies(host, port) {
            Err(Refusal::Denied)
        } else if self.allow.iter().any(|rule| rule.holds(host, port)) {
            Ok(())
        } else {
            Err(Refusal::NotAllowed)
        }
    }

    /// Whether an address that a host turned out to have may be connected to. A name opens no private network, whoever
    /// answers for it: only a rule with the address itself does.
    ///
    /// # Errors
    /// It may not.
    pub fn address(&self, address: IpAddr, port: u16) -> Result<(), Refusal> {
        let host = Host::Address(address.to_canonical());
        if self.denies(&host, port) {
            return Err(Refusal::Denied);
        }
        let is_named = || {
            let by_address = self.allow.iter().filter(|rule| matches!(rule.hosts, Hosts::Address(_)));
            by_address.into_iter().any(|rule| rule.holds(&host, port))
        };
        match realm(address) {
            Realm::Public => Ok(()),
            Realm::Private if is_named() => Ok(()),
            Realm::Private | Realm::Closed => Err(Refusal::NotPublic),
        }
    }

    /// Rules without effect, as what they allow is closed whatever is written.
    pub fn without_effect(lines: &[String]) -> Vec<usize> {
        let is_closed = |line: &String| matches!(Rule::parse(line), Some(Rule { hosts: Hosts::Address(address), .. }) if realm(address) == Realm::Closed);
        lines.iter().enumerate().filter(|(_, line)| is_closed(line)).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(lines: &[&str]) -> Policy {
        Policy::parse(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn hosts_are_allowed_and_denied_by_name() {
        let rules =
            ["example.org", "*.example.net", "api.test:443", "!bad.example.net", "!*.example.org:25", "Upper.TEST."];
        let policy = policy(&rules);
        for (host, port, expected) in [
            ("example.org", 80, Ok(())),
            ("EXAMPLE.org.", 80, Ok(())),
            ("www.example.org", 80, Err(Refusal::NotAllowed)),
            ("notexample.org", 80, Err(Refusal::NotAllowed)),
            ("example.org.evil.test", 80, Err(Refusal::NotAllowed)),
            ("a.example.net", 80, Ok(())),
            ("a.b.example.net", 8443, Ok(())),
            ("example.net", 80, Err(Refusal::NotAllowed)),
            ("evilexample.net", 80, Err(Refusal::NotAllowed)),
            ("bad.example.net", 80, Err(Refusal::Denied)),
            ("very.bad.example.net", 80, Ok(())),
            ("api.test", 443, Ok(())),
            ("api.test", 80, Err(Refusal::NotAllowed)),
            ("mail.example.org", 25, Err(Refusal::Denied)),
            ("upper.test", 1, Ok(())),
            ("1.1.1.1", 80, Err(Refusal::NotAllowed)),
        ] {
            assert_eq!(policy.host(&Host::parse(host).unwrap(), port), expected, "{host}:{port}");
        }
    }

    #[test]
    fn a_denial_outranks_everything_in_any_order() {
        for rules in [["*", "!example.org"], ["!example.org", "*"]] {
            let policy = policy(&rules);
            assert_eq!(policy.host(&Host::parse("example.org").unwrap(), 80), Err(Refusal::Denied));
            assert_eq!(policy.host(&Host::parse("example.com").unwrap(), 80), Ok(()));
        }
        let by_address = policy(&["*", "!1.1.1.1"]);
        assert_eq!(by_address.address("1.1.1.1".parse().unwrap(), 80), Err(Refusal::Denied), "also behind a name");
        for form in ["::ffff:1.1.1.1", "::1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::"] {
            assert_eq!(by_address.address(form.parse().unwrap(), 80), Err(Refusal::Denied), "{form}");
            assert_eq!(by_address.host(&Host::parse(form).unwrap(), 80), Err(Refusal::Denied), "{form}");
        }
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        let none = Policy::default();
        assert_eq!(none.host(&Host::parse("example.org").unwrap(), 443), Err(Refusal::NotAllowed));
    }

    #[test]
    fn private_networks_open_by_address_only_and_the_machine_never() {
        let all = policy(&["*"]);
        let some = policy(&["*", "10.0.0.1", "192.168.0.9:443", "127.0.0.1", "169.254.169.254", "[fd00::9]"]);
        for (address, port, by_any, by_address) in [
            ("1.1.1.1", 80, true, true),
            ("10.0.0.1", 80, false, true),
            ("::ffff:10.0.0.1", 80, false, true),
            ("10.0.0.2", 80, false, false),
            ("192.168.0.9", 443, false, true),
            ("192.168.0.9", 80, false, false),
            ("fd00::9", 80, false, true),
            ("127.0.0.1", 80, false, false),
            ("169.254.169.254", 80, false, false),
            ("0.0.0.0", 80, false, false),
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!(all.address(parsed, port).is_ok(), by_any, "{address}");
            assert_eq!(some.address(parsed, port).is_ok(), by_address, "{address}:{port}");
        }
    }

    #[test]
    fn rules_and_hosts_are_read() {
        let address = |text: &str| Hosts::Address(text.parse().unwrap());
        for (text, expected) in [
            ("*", Some((Hosts::Any, None))),
            ("*:443", Some((Hosts::Any, Some(443)))),
            ("Example.org", Some((Hosts::Named("example.org".into()), None))),
            ("*.example.org:443", Some((Hosts::Below("example.org".into()), Some(443)))),
            ("10.0.0.1:80", Some((address("10.0.0.1"), Some(80)))),
            ("2001:db8::1", Some((address("2001:db8::1"), None))),
            ("[2001:db8::1]:443", Some((address("2001:db8::1"), Some(443)))),
            ("*.10.0.0.1", None),
            ("example.org:port", None),
            ("http://x", None),
            ("", None),
        ] {
            let expected = expected.map(|(hosts, port)| Rule { hosts, port });
            assert_eq!(Rule::parse(text), expected, "{text:?}");
        }
        for wrong in
            ["", ".", "..", "a..", "a.b..", "a..b", ".a", ".example.net", "a b", "a/b", "a@b", "a\0b", "[::1", "x\r\ny"]
        {
            assert_eq!(Host::parse(wrong), None, "{wrong:?}");
        }
        for numbers in ["2130706433", "0x7f.1", "127.1."] {
            assert_eq!(Host::parse(numbers), Some(Host::Address("127.0.0.1".parse().unwrap())), "{numbers}");
        }
        assert_eq!(Host::parse("1.2.3.999"), None);
        assert_eq!(Host::parse("[::ffff:127.0.0.1]"), Some(Host::Address("127.0.0.1".parse().unwrap())));
        assert_eq!(Policy::parse(&["a".into(), "b c".into()]), Err(1));
        assert_eq!(Policy::without_effect(&["127.0.0.1".into(), "10.0.0.1".into(), "x".into()]), [0]);
    }
}
