//! Names of operations as an enum with one spelling, in errors, metrics, traces, gRPC and Python.

macro_rules! names {
    ($(#[$doc:meta])* $type:ident { $($name:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each is the name of an operation that is documented where it is")]
        pub enum $type { $($name,)+ }

        impl $type {
            /// Every name.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$name),+];

            /// The name as text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Names as text.
            #[must_use]
            pub const fn texts<const N: usize>(names: [Self; N]) -> [&'static str; N] {
                let mut texts = [""; N];
                let mut at = 0;
                while at < N {
                    texts[at] = names[at].as_str();
                    at += 1;
                }
                texts
            }

            /// The name that is written so.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)+ _ => None }
            }
        }

        impl $crate::error::Named for $type {
            fn name(&self) -> &'static str {
                self.as_str()
            }
        }
    };
}

pub(super) use names;
