//! `keel scale`: set the replicas of a service whose scale is left to commands.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Set the replicas of a service whose `scale.mode` is `manual`
///
/// The number is kept when the file is applied again and when the controller restarts, until the service is declared no more
/// or with another mode. Where the spec says how many there
/// are, it is edited there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel scale demo/web --replicas 5")]
pub struct Args {
    /// DEPLOYMENT/SERVICE
    #[arg(value_name = "NAME")]
    name: Target,
    /// How many there should be; 0 keeps the declaration and runs nothing
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count)]
    replicas: u32,
}

/// A number of replicas, as somebody wrote it.
fn count(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(..0) => Err("there can't be fewer than 0 replicas".to_owned()),
        Ok(number) => u32::try_from(number).map_err(|_| format!("there can't be more than {} replicas", u32::MAX)),
        Err(_) => Err("it is no whole number".to_owned()),
    }
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let what = Order::Scale { target: self.name.to_string(), replicas: self.replicas };
        order(options, &what, Alone::Declared).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_whole_number_that_is_not_negative() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("4294967295", Ok(u32::MAX)),
            ("-1", Err("there can't be fewer than 0 replicas")),
            ("4294967296", Err("there can't be more than 4294967295 replicas")),
            ("two", Err("it is no whole number")),
        ] {
            assert_eq!(count(text), expected.map_err(str::to_owned), "{text}");
        }
    }
}
