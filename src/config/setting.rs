//! What a setting is, and the table that the rest of podlink derives from it.
//!
//! `settings!` takes one row for each setting: its meaning, name, type, default and limits. It makes
//! the field of the struct, the reading of a given value and the range check. The rows are exported
//! once (`podlink._podlink.config_table`); the command line's options come from them, and tests compare
//! the Python configurations and the pages with them (docs/decisions/0019).

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::id::{invalid, shown};
use crate::route::address::AddressTemplate;

/// What a setting measures, its default and its limits, ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SettingKind {
    /// A number of seconds.
    Seconds {
        /// What it is if it is not set.
        default: f64,
        /// The smallest value.
        least: f64,
        /// The largest value; infinite if there is none.
        most: f64,
    },
    /// A number of seconds, or none: then what it sets is off.
    SecondsOrNone {
        /// What it is if it is not set.
        default: f64,
        /// The smallest value.
        least: f64,
        /// The largest value.
        most: f64,
    },
    /// A number of things.
    Count {
        /// What it is if it is not set.
        default: i64,
        /// The smallest value.
        least: i64,
        /// The largest value; `i64::MAX` if there is none.
        most: i64,
    },
    /// A share, 0 to 1.
    Ratio {
        /// What it is if it is not set.
        default: f64,
    },
    /// Any whole number, or none, which is the default.
    Limit,
    /// Yes or no.
    Flag {
        /// What it is if it is not set.
        default: bool,
    },
    /// One of a few names.
    Choice {
        /// What it is if it is not set.
        default: &'static str,
        /// The names.
        names: &'static [&'static str],
    },
    /// A text.
    Text {
        /// What it is if it is not set.
        default: &'static str,
    },
}

/// One row of a table of settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// The name, the same in Rust, in Python and on the command line.
    pub name: &'static str,
    /// What it measures, its default and its limits.
    pub kind: SettingKind,
    /// What it means: a sentence.
    pub meaning: &'static str,
}

/// The value of a setting, as it is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SettingValue<'a> {
    /// No limit.
    Absent,
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// A number, or a number of seconds.
    Number(f64),
    /// A name, or a text.
    Text(&'a str),
}

impl fmt::Display for SettingValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("none"),
            Self::Flag(given) => given.fmt(f),
            Self::Whole(given) => given.fmt(f),
            Self::Number(given) => given.fmt(f),
            Self::Text(given) => f.write_str(&shown(given)),
        }
    }
}

impl Setting {
    /// Its default.
    #[must_use]
    pub const fn default(&self) -> SettingValue<'static> {
        match self.kind {
            SettingKind::Seconds { default, .. }
            | SettingKind::SecondsOrNone { default, .. }
            | SettingKind::Ratio { default } => SettingValue::Number(default),
            SettingKind::Count { default, .. } => SettingValue::Whole(default),
            SettingKind::Limit => SettingValue::Absent,
            SettingKind::Flag { default } => SettingValue::Flag(default),
            SettingKind::Choice { default, .. } | SettingKind::Text { default } => {
                SettingValue::Text(default)
            }
        }
    }

    /// What is allowed, for errors.
    fn allowed(&self) -> String {
        match self.kind {
            SettingKind::Seconds { least, most, .. } if most.is_infinite() => {
                format!("at least {least} seconds")
            }
            SettingKind::Seconds { least, most, .. } => format!("{least} to {most} seconds"),
            SettingKind::SecondsOrNone { least, most, .. } => {
                format!("{least} to {most} seconds, or none")
            }
            SettingKind::Count { least, most, .. } if most == i64::MAX => {
                let noun = if least == 1 { "entry" } else { "entries" };
                format!("at least {least} {noun}")
            }
            SettingKind::Count { least, most, .. } => format!("{least} to {most}"),
            SettingKind::Ratio { .. } => "0 to 1".to_owned(),
            SettingKind::Limit => "a whole number or none".to_owned(),
            SettingKind::Flag { .. } => "true or false".to_owned(),
            SettingKind::Choice { names, .. } => one_of(names),
            SettingKind::Text { .. } => "a text".to_owned(),
        }
    }

    /// The error for this value.
    pub(super) fn refused(&self, given: SettingValue<'_>) -> Error {
        invalid(self.name, &given.to_string(), &self.allowed())
    }

    fn number(&self, given: SettingValue<'_>) -> Result<f64> {
        let range = match self.kind {
            SettingKind::Seconds { least, most, .. }
            | SettingKind::SecondsOrNone { least, most, .. } => Some(least..=most),
            SettingKind::Ratio { .. } => Some(0.0..=1.0),
            _ => None,
        };
        match (given, range) {
            (SettingValue::Number(number), Some(range))
                if number.is_finite() && range.contains(&number) =>
            {
                Ok(number)
            }
            _ => Err(self.refused(given)),
        }
    }

    fn count(&self, given: SettingValue<'_>) -> Result<i64> {
        match (given, self.kind) {
            (SettingValue::Whole(count), SettingKind::Count { least, most, .. })
                if (least..=most).contains(&count) =>
            {
                Ok(count)
            }
            _ => Err(self.refused(given)),
        }
    }
}

/// Names as a sentence lists them: `a, b or c`.
pub(super) fn one_of(names: &[&str]) -> String {
    match names {
        [first @ .., before, last] => {
            let first: String = first.iter().map(|name| format!("{name}, ")).collect();
            format!("{first}{before} or {last}")
        }
        _ => names.concat(),
    }
}

/// A type that a setting has in Rust.
pub trait SettingType: Sized {
    /// Reads a value and checks its range.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, the value and what is allowed.
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self>;

    /// The value that reads as this.
    fn value(&self) -> SettingValue<'_>;
}

impl SettingType for Duration {
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
        let seconds = setting.number(given)?;
        Ok(Self::try_from_secs_f64(seconds).unwrap_or(Self::MAX))
    }

    fn value(&self) -> SettingValue<'static> {
        SettingValue::Number(self.as_secs_f64())
    }
}

impl SettingType for Option<Duration> {
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
        match given {
            SettingValue::Absent => Ok(None),
            given => Duration::read(setting, given).map(Some),
        }
    }

    fn value(&self) -> SettingValue<'static> {
        self.map_or(SettingValue::Absent, |set| {
            SettingValue::Number(set.as_secs_f64())
        })
    }
}

impl SettingType for f64 {
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
        setting.number(given)
    }

    fn value(&self) -> SettingValue<'static> {
        SettingValue::Number(*self)
    }
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {$(
        impl SettingType for $type {
            fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
                let count = setting.count(given)?;
                count.try_into().map_err(|_| setting.refused(given))
            }

            fn value(&self) -> SettingValue<'static> {
                SettingValue::Whole((*self).try_into().unwrap_or(i64::MAX))
            }
        }
    )+};
}

whole_numbers!(u32, u64, usize);

impl SettingType for Option<i64> {
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
        match given {
            SettingValue::Absent => Ok(None),
            SettingValue::Whole(limit) => Ok(Some(limit)),
            _ => Err(setting.refused(given)),
        }
    }

    fn value(&self) -> SettingValue<'static> {
        self.map_or(SettingValue::Absent, SettingValue::Whole)
    }
}

impl SettingType for AddressTemplate {
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
        match given {
            SettingValue::Text(text) => Self::parse(setting.name, text),
            _ => Err(setting.refused(given)),
        }
    }

    fn value(&self) -> SettingValue<'_> {
        SettingValue::Text(self.as_str())
    }
}

impl SettingType for bool {
    fn read(setting: &Setting, given: SettingValue<'_>) -> Result<Self> {
        match given {
            SettingValue::Flag(flag) => Ok(flag),
            _ => Err(setting.refused(given)),
        }
    }

    fn value(&self) -> SettingValue<'static> {
        SettingValue::Flag(*self)
    }
}

/// Settings that are read together.
pub trait SettingsGroup: Sized {
    /// A row for each setting.
    fn table() -> Vec<Setting>;

    /// Reads each setting by its name. A setting that is not given has its default.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, the value and what is allowed.
    fn read(given: &HashMap<&str, SettingValue<'_>>) -> Result<Self>;

    /// Checks that each setting is within its limits. How settings relate is checked elsewhere.
    ///
    /// # Errors
    /// `InvalidParameter` that names the setting, the value and what is allowed.
    fn check_each(&self) -> Result<()>;

    /// The settings if none is given.
    ///
    /// # Errors
    /// `InvalidParameter` if a default is not within its limits, which a test excludes.
    fn defaults() -> Result<Self> {
        Self::read(&HashMap::new())
    }
}

/// Reads the setting of this row.
pub(super) fn read<T: SettingType>(
    setting: &Setting,
    given: &HashMap<&str, SettingValue<'_>>,
) -> Result<T> {
    let value = given.get(setting.name).copied();
    T::read(setting, value.unwrap_or(setting.default()))
}

/// Defines a struct of settings, or describes those of a struct that is defined elsewhere.
///
/// `settings` has a row for each setting; its comment is the meaning that users read. `parts` has
/// groups of settings that are structs of their own. `others` has what is no setting, and its value
/// until the driver sets it.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $group:ident {
            $(parts { $($(#[doc = $part_doc:literal])+ $part:ident: $part_type:ty,)+ })?
            settings { $($rows:tt)+ }
            $(others { $(
                $(#[doc = $other_doc:literal])+ $other:ident: $other_type:ty = $initial:expr,
            )+ })?
        }
    ) => {
        settings! {
            @define
            { $(#[$meta])* pub struct $group }
            { $($($(#[doc = $part_doc])+ $part: $part_type,)+)? }
            { $($rows)+ }
            { $($($(#[doc = $other_doc])+ $other: $other_type,)+)? }
        }
        settings! {
            @describe
            $group
            { $($($part: $part_type,)+)? }
            { $($rows)+ }
            { $($($other = $initial,)+)? }
        }
    };
    (impl $group:ident { $($rows:tt)+ }) => {
        settings! { @describe $group {} { $($rows)+ } {} }
    };
    (
        @define
        { $(#[$meta:meta])* pub struct $group:ident }
        { $($(#[doc = $part_doc:literal])+ $part:ident: $part_type:ty,)* }
        { $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $kind:expr,)+ }
        { $($(#[doc = $other_doc:literal])+ $other:ident: $other_type:ty,)* }
    ) => {
        $(#[$meta])*
        pub struct $group {
            $($(#[doc = $part_doc])+ pub $part: $part_type,)*
            $($(#[doc = $doc])+ pub $name: $type,)+
            $($(#[doc = $other_doc])+ pub $other: $other_type,)*
        }
    };
    (
        @describe
        $group:ident
        { $($part:ident: $part_type:ty,)* }
        { $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $kind:expr,)+ }
        { $($other:ident = $initial:expr,)* }
    ) => {
        const _: () = {
            use $crate::config::setting::{self, Setting, SettingType, SettingValue, SettingsGroup};

            $(#[allow(non_upper_case_globals, reason = "a row is named after its setting")]
            const $name: Setting = Setting {
                name: stringify!($name),
                kind: $kind,
                meaning: concat!($($doc),+).trim_ascii(),
            };)+

            impl SettingsGroup for $group {
                fn table() -> Vec<Setting> {
                    let parts: Vec<Vec<Setting>> = vec![$(<$part_type>::table()),*];
                    let mut table = parts.concat();
                    table.extend([$($name),+]);
                    table
                }

                fn read(
                    given: &std::collections::HashMap<&str, SettingValue<'_>>,
                ) -> $crate::error::Result<Self> {
                    Ok(Self {
                        $($part: <$part_type>::read(given)?,)*
                        $($name: setting::read(&$name, given)?,)+
                        $($other: $initial,)*
                    })
                }

                fn check_each(&self) -> $crate::error::Result<()> {
                    $(self.$part.check_each()?;)*
                    $(<$type>::read(&$name, self.$name.value())?;)+
                    Ok(())
                }
            }
        };
    };
}
pub(super) use settings;

/// Defines a type of setting that is one of a few names.
macro_rules! choices {
    (
        $(#[$meta:meta])*
        pub enum $type:ident of $setting:literal {
            $($(#[doc = $doc:literal])+ $choice:ident = $text:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[doc = $doc])+ $choice,)+
        }

        impl $type {
            /// The names that users write.
            pub const NAMES: &[&str] = &[$($text),+];

            /// The choice with this name.
            ///
            /// # Errors
            /// `InvalidParameter` that lists the names.
            pub fn parse(name: &str) -> $crate::error::Result<Self> {
                match name {
                    $($text => Ok(Self::$choice),)+
                    _ => Err($crate::id::invalid(
                        $setting,
                        &$crate::id::shown(name),
                        &$crate::config::setting::one_of(Self::NAMES),
                    )),
                }
            }
        }

        $crate::config::setting::choice! { $type { $(Self::$choice => $text),+ } }
    };
}
pub(super) use choices;

/// Makes a type that is parsed from a name a type of setting.
macro_rules! choice {
    ($type:ty { $($choice:pat => $text:expr),+ }) => {
        impl $crate::config::SettingType for $type {
            fn read(
                setting: &$crate::config::Setting,
                given: $crate::config::SettingValue<'_>,
            ) -> $crate::error::Result<Self> {
                match given {
                    $crate::config::SettingValue::Text(name) => Self::parse(name),
                    _ => Err(setting.refused(given)),
                }
            }

            fn value(&self) -> $crate::config::SettingValue<'static> {
                $crate::config::SettingValue::Text(match self { $($choice => $text),+ })
            }
        }
    };
}
pub(super) use choice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_as_in_a_sentence() {
        assert_eq!(one_of(&["a", "b", "c"]), "a, b or c");
        assert_eq!(one_of(&["a", "b"]), "a or b");
    }

    #[test]
    fn a_value_of_another_kind_is_rejected() {
        let ratio = SettingKind::Ratio { default: 0.5 };
        let setting = Setting {
            name: "share",
            kind: ratio,
            meaning: "A share.",
        };
        for wrong in [SettingValue::Flag(true), SettingValue::Text("half")] {
            let text = f64::read(&setting, wrong).unwrap_err().to_string();
            assert!(text.contains("share must be 0 to 1"), "{text}");
            assert!(Duration::read(&setting, wrong).is_err());
            assert!(u32::read(&setting, wrong).is_err());
            assert!(Option::<i64>::read(&setting, wrong).is_err());
        }
    }
}
