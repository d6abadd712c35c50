//! Tests of the deployer from outside: its backends, and its loop on a real bus.

#[cfg(test)]
mod backends;
#[cfg(test)]
mod place;
#[cfg(test)]
mod replicas;
