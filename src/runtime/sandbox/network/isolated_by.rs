//! By what the network of an instance is isolated, in words. Pure.

use super::{Link, Network};

/// What an instance with the network of the machine is told to have.
pub const SHARED: &str = "shares the machine's network";
/// What connects the instances of an ordinary user.
pub const PASTA: &str = "pasta";

impl Network {
    /// By what it is isolated, for an instance with a network namespace of its own.
    pub fn isolated_by(&self) -> String {
        let ways = match (&self.link, &self.egress) {
            (Link::Bridge(attachment), _) => {
                return format!("network namespace on the bridge {} of its deployment", attachment.network.bridge);
            }
            (Link::Pasta(pasta), _) if pasta.machine.is_some() => "connected by pasta, reaches the machine",
            (Link::Pasta(_), _) => "connected by pasta",
            (Link::Machine | Link::Alone, Some(_)) => "with loopback and the egress proxy only",
            (Link::Machine | Link::Alone, None) => "with loopback only",
        };
        match self.published.len() {
            0 => format!("network namespace {ways}"),
            1 => format!("network namespace {ways}, reached by 1 published port"),
            count => format!("network namespace {ways}, reached by {count} published ports"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_network_has_its_words() {
        let port = json!({ "host_ip": "127.0.0.1", "host_port": 1, "port": 2 });
        let bridge = json!({
            "network": { "dir": "/n", "bridge": "keel-1", "alias": "", "mtu": 1500,
                         "subnet": { "first": "10.208.0.0", "length": 22 } },
            "interface": "kv-1", "address": "10.208.0.2", "names": [],
        });
        let policy = super::super::egress::Policy::parse(&["example.com".to_owned()]).unwrap();
        for (network, expected) in [
            (json!({ "link": "alone" }), "network namespace with loopback only"),
            (
                json!({ "link": "alone", "published": [port] }),
                "network namespace with loopback only, reached by 1 published port",
            ),
            (
                json!({ "link": "alone", "published": [port, port], "egress": policy }),
                "network namespace with loopback and the egress proxy only, reached by 2 published ports",
            ),
            (json!({ "link": { "pasta": { "program": "/p" } } }), "network namespace connected by pasta"),
            (
                json!({ "link": { "pasta": { "program": "/p", "machine": "192.0.2.1" } }, "published": [port] }),
                "network namespace connected by pasta, reaches the machine, reached by 1 published port",
            ),
            (json!({ "link": { "bridge": bridge } }), "network namespace on the bridge keel-1 of its deployment"),
        ] {
            assert_eq!(serde_json::from_value::<Network>(network).unwrap().isolated_by(), expected);
        }
    }
}
