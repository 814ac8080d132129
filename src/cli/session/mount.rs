//! Mounts as they are written on the command line, in Docker's words.

use crate::state::LateMount;

/// What `--mount` takes.
pub const MOUNT: &str = "type=bind,source=PATH,target=PATH[,readonly]";

/// Reads `type=bind,source=PATH,target=PATH[,readonly]`, with Docker's other names for these.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn mount(text: &str) -> Result<LateMount, String> {
    let (mut source, mut target, mut readonly) = (None, None, None);
    for option in text.split(',') {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("type", Some("bind")) => {}
            ("type", other) => {
                let kind = other.unwrap_or_default();
                return Err(format!("the type {kind:?} can't be mounted into what runs; write type=bind"));
            }
            ("source" | "src", Some(path)) => once(&mut source, path.to_owned(), "source")?,
            ("target" | "destination" | "dst", Some(path)) => once(&mut target, path.to_owned(), "target")?,
            ("readonly" | "ro", None | Some("true" | "1")) => once(&mut readonly, true, "readonly")?,
            ("readonly" | "ro", Some("false" | "0")) => once(&mut readonly, false, "readonly")?,
            ("readonly" | "ro", Some(other)) => return Err(format!("readonly={other} is neither true nor false")),
            _ => return Err(format!("{option:?} is no option of a mount; write {MOUNT}")),
        }
    }
    let missing = |name: &str| format!("{name} is missing; write {MOUNT}");
    Ok(LateMount {
        source: source.ok_or_else(|| missing("source"))?,
        target: target.ok_or_else(|| missing("target"))?,
        readonly: readonly.unwrap_or(false),
    })
}

fn once<T>(option: &mut Option<T>, value: T, name: &str) -> Result<(), String> {
    match option.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{name} is written twice")),
    }
}

/// Reads `SOURCE:TARGET[:ro|rw]`.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn volume(text: &str) -> Result<LateMount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, readonly) = match parts.as_slice() {
        [source, target] | [source, target, "rw"] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => return Err("write SOURCE:TARGET or SOURCE:TARGET:ro, both absolute paths".to_owned()),
    };
    Ok(LateMount { source: (*source).to_owned(), target: (*target).to_owned(), readonly })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str, target: &str, readonly: bool) -> LateMount {
        LateMount { source: source.to_owned(), target: target.to_owned(), readonly }
    }

    #[test]
    fn dockers_words_are_understood() {
        for (text, readonly) in [
            ("type=bind,source=/a b,target=/x", false),
            ("src=/a b,dst=/x,readonly", true),
            ("destination=/x,ro=true,source=/a b,type=bind", true),
            ("source=/a b,target=/x,readonly=0", false),
        ] {
            assert_eq!(mount(text), Ok(of("/a b", "/x", readonly)), "{text}");
        }
        for (text, readonly) in [("/a:/x", false), ("/a:/x:rw", false), ("/a:/x:ro", true)] {
            assert_eq!(volume(text), Ok(of("/a", "/x", readonly)), "{text}");
        }
    }

    #[test]
    fn what_is_no_mount_is_refused_with_what_to_write() {
        for (text, why) in [
            ("", "\"\" is no option of a mount"),
            ("source=/a", "target is missing"),
            ("type=bind,target=/x", "source is missing"),
            ("type=tmpfs,target=/x", "the type \"tmpfs\""),
            ("type,source=/a,target=/x", "the type \"\""),
            ("source=/a,target=/x,readonly=maybe", "readonly=maybe is neither"),
            ("source=/a,target=/x,Readonly", "\"Readonly\" is no option"),
            ("source=/a,target=/x,bind-propagation=shared", "\"bind-propagation=shared\" is no option"),
            ("source=/a,source=/b,target=/x", "source is written twice"),
            ("source=/a,target=/x,ro=false,ro", "readonly is written twice"),
        ] {
            assert!(mount(text).unwrap_err().contains(why), "{text}: {:?}", mount(text));
        }
        for text in ["", "/a", "/a:/x:rx", "/a:/x:ro:z"] {
            assert!(volume(text).unwrap_err().contains("SOURCE:TARGET:ro"), "{text}");
        }
    }
}
