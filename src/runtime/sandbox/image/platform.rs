//! Which of several images is for this machine.

use serde::{Deserialize, Serialize};

/// What an image was built for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Instruction set, as Go names it.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, as Go names it.
    #[serde(default)]
    pub os: String,
    /// Version of the instruction set.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = (architecture == "arm").then(|| "v7".to_owned());
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant }
    }

    /// How well an image for `other` runs here, the lowest best; `None` where it does not.
    fn fit(&self, other: &Self) -> Option<u32> {
        if other.os != self.os || other.architecture != self.architecture {
            return None;
        }
        let number = |variant: &Option<String>| {
            variant
                .as_deref()
                .and_then(|variant| variant.strip_prefix('v'))
                .and_then(|number| number.parse::<u32>().ok())
        };
        match (number(&other.variant), number(&self.variant)) {
            (None, _) => Some(0),
            // Each version runs the earlier ones' programs; the nearest knows this machine best.
            (Some(other), Some(own)) => own.checked_sub(other),
            // Nothing is known of this machine's version: the first asks for least.
            (Some(other), None) => Some(other),
        }
    }

    /// Whether programs built for `other` run here as they are; where it says nothing of itself, nothing is against it.
    pub fn runs(&self, other: &Self) -> bool {
        let is_told = !other.architecture.is_empty();
        // Processors that run the one run the other as well.
        let is_older = self.architecture == "amd64" && other.architecture == "386";
        let os = if other.os.is_empty() { self.os.clone() } else { other.os.clone() };
        !is_told || is_older || self.fit(&Self { os, ..other.clone() }).is_some()
    }

    /// Which of these fits this platform best.
    pub fn choose<'a, T>(&self, from: impl IntoIterator<Item = (&'a Self, T)>) -> Option<T> {
        from.into_iter()
            .filter_map(|(platform, what)| Some((self.fit(platform)?, what)))
            .min_by_key(|(fit, _)| *fit)
            .map(|(_, what)| what)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        write!(f, "{os}/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    fn chosen<'a>(own: &str, from: &[&'a str]) -> Option<&'a str> {
        let platforms: Vec<Platform> = from.iter().map(|text| platform(text)).collect();
        platform(own).choose(platforms.iter().zip(from.iter().copied()))
    }

    #[test]
    fn a_program_for_another_processor_does_not_run_as_it_is() {
        let runs = |own: &str, other: &str| platform(own).runs(&platform(other));
        assert!(
            runs("linux/amd64", "linux/amd64")
                && runs("linux/amd64", "linux/386")
                && runs("linux/arm/v7", "linux/arm/v6")
        );
        assert!(
            !runs("linux/amd64", "linux/arm64")
                && !runs("linux/386", "linux/amd64")
                && !runs("linux/arm/v6", "linux/arm/v7")
        );
        assert!(platform("linux/amd64").runs(&Platform::default()), "it says nothing");
        let without_os = Platform { architecture: "arm64".to_owned(), ..Platform::default() };
        assert!(!platform("linux/amd64").runs(&without_os));
        assert!(platform("linux/arm64").runs(&without_os));
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let common = ["unknown/unknown", "linux/arm64/v8", "linux/amd64", "windows/amd64"];
        assert_eq!(chosen("linux/amd64", &common), Some("linux/amd64"));
        assert_eq!(chosen("linux/arm64", &common), Some("linux/arm64/v8"));
        assert_eq!(chosen("linux/riscv64", &common), None);
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3", "linux/amd64/v2"]), Some("linux/amd64/v2"));
        assert_eq!(chosen("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"]), Some("linux/arm/v6"));
    }
}
