//! The egress proxy: the way out for instances that may reach some hosts only. It listens in the network namespace of the
//! instance, which has nothing but a loopback interface, and connects in the machine's network.

mod address;
mod greeting;
mod head;
mod hosts;
mod policy;
mod proxy;
mod relay;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

pub use policy::Policy;
pub use proxy::serve;

/// Port of the proxy inside, on loopback: that of Squid.
pub const PORT: u16 = 3128;
/// Variables by which programs find a proxy; curl knows the first only in lower case.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
/// Variables by which programs know what needs none.
const DIRECT: &[&str] = &["no_proxy", "NO_PROXY"];

/// Tells a program of the proxy, where it was told of none.
pub fn tell(env: &mut BTreeMap<String, String>) {
    let mut set = |names: &[&str], value: &str| {
        for name in names {
            env.entry((*name).to_owned()).or_insert_with(|| value.to_owned());
        }
    };
    set(PROXIES, &format!("http://{}:{PORT}", Ipv4Addr::LOCALHOST));
    set(DIRECT, "localhost,127.0.0.1,::1");
}
