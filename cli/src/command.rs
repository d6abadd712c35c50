//! One file a command.

pub mod completion;
pub mod context;
pub mod dead_letters;
pub mod delete;
pub mod deploy;
pub mod env;
pub mod events;
pub mod invoke;
pub mod keys;
pub mod logs;
pub mod models;
pub mod package;
pub mod prune;
pub mod scale;
pub mod status;
pub mod up;
