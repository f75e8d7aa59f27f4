//! The filter of the core's log records: `PODLINK_LOG`.

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;

use crate::error::{Error, Result};
use crate::id::{invalid, shown};

const ROOM: &str = "podlink";

static WANTED: LazyLock<ArcSwap<Targets>> =
    LazyLock::new(|| ArcSwap::from_pointee(Targets::new().with_default(LevelFilter::INFO)));

/// Parses a text like `debug` or `info,podlink.store=trace`, and applies it from now on. Returns
/// the most verbose level.
///
/// Only podlink's own records pass, whatever the filter is: those of the libraries below may
/// contain bytes from the wire, including tokens.
pub(super) fn set(text: &str) -> Result<LevelFilter> {
    WANTED.store(Arc::new(read(text)?));
    tracing::callsite::rebuild_interest_cache();
    Ok(most_verbose())
}

fn read(text: &str) -> Result<Targets> {
    // Logger names have dots, targets have colons.
    let targets: Targets = text
        .replace('.', "::")
        .parse()
        .map_err(|_| rejected(text))?;
    let ours = |target: &str| target == ROOM || target.starts_with("podlink::");
    if text.trim().is_empty() || !targets.iter().all(|(target, _)| ours(target)) {
        return Err(rejected(text));
    }
    let rest = targets.default_level().unwrap_or(LevelFilter::INFO);
    Ok(targets.with_default(rest))
}

fn rejected(text: &str) -> Error {
    let allowed = "a level (off, error, warn, info, debug, trace), or levels of podlink's loggers, \
                   like info,podlink.store=debug";
    invalid("PODLINK_LOG", &shown(text), allowed)
}

/// Whether a record passes the filter.
pub(super) fn wants(metadata: &Metadata<'_>) -> bool {
    let wanted = WANTED.load();
    metadata.target().starts_with(ROOM) && wanted.would_enable(metadata.target(), metadata.level())
}

/// The most verbose level.
pub(super) fn most_verbose() -> LevelFilter {
    let wanted = WANTED.load();
    let levels = wanted.iter().map(|(_, level)| level);
    let most = levels.chain(wanted.default_level()).max();
    most.unwrap_or(LevelFilter::INFO)
}

/// The level's number in Python's `logging`; TRACE, which has none there, is below DEBUG.
pub(super) fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level_of(text: &str, target: &str) -> Option<Level> {
        let targets = read(text).unwrap();
        let levels = [
            Level::TRACE,
            Level::DEBUG,
            Level::INFO,
            Level::WARN,
            Level::ERROR,
        ];
        levels
            .into_iter()
            .find(|level| targets.would_enable(target, level))
    }

    #[test]
    fn other_loggers_stay_at_info() {
        let text = "podlink.store=trace,podlink::rpc=off";
        assert_eq!(level_of(text, "podlink::store::redis"), Some(Level::TRACE));
        assert_eq!(level_of(text, "podlink::driver"), Some(Level::INFO));
        assert_eq!(level_of(text, "podlink::rpc::client"), None);
        assert_eq!(level_of("DEBUG", "podlink::driver"), Some(Level::DEBUG));
        assert_eq!(
            level_of("warn,podlink=debug", "podlink::a"),
            Some(Level::DEBUG)
        );
    }

    #[test]
    fn an_invalid_filter_is_rejected_with_the_rule() {
        for bad in [
            "",
            " ",
            "loud",
            "podlink=loud",
            "h2=trace",
            "podlinkx=info",
            "a=b=c",
            "\u{1b}[2J",
        ] {
            let error = read(bad).err().map(|error| error.to_string());
            let text = error.unwrap_or_default();
            assert!(
                text.starts_with("PODLINK_LOG must be a level"),
                "{bad:?}: {text}"
            );
            assert!(!text.contains('\u{1b}'));
        }
    }
}
