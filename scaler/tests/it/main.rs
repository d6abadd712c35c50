//! Tests of the scaler as others see it: events and time in, requests for replicas out.

#[cfg(test)]
mod bus;
#[cfg(test)]
mod decisions;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod world;
