//! Layers: what is true of every call, over any store.

mod metered;
mod traced;

pub use metered::Metered;
pub use traced::Traced;
