//! Messages as events: what cannot be read, or asks for what no service may be, has a reason.

use proto::{
    builder::ImageResolved,
    deployer::{DeploymentDelete, DeploymentFailed},
    event::Event,
    id::Generation,
    scaler::ScaleRequested,
    spec::Scaling,
};
use runtime::bus::Delivery;

/// An event that was read and is not yet news.
pub(super) enum Unread {
    Resolved(Box<ImageResolved>),
    Failed(Box<DeploymentFailed>),
    Scale(Box<ScaleRequested>),
    Delete,
}

/// Reads a message, and which generation it asks for.
pub(super) fn read(delivery: &Delivery) -> Result<(Unread, Option<Generation>), String> {
    Ok(match delivery.event_type.as_str() {
        ImageResolved::TYPE => {
            let event: ImageResolved = delivery.parse()?;
            within_bounds(event.spec.violations())?;
            let generation = event.generation;
            (Unread::Resolved(Box::new(event)), Some(generation))
        }
        DeploymentFailed::TYPE => (Unread::Failed(Box::new(delivery.parse()?)), None),
        ScaleRequested::TYPE => {
            let event: ScaleRequested = delivery.parse()?;
            within_bounds(event.scaling.as_ref().map(Scaling::violations).unwrap_or_default())?;
            (Unread::Scale(Box::new(event)), None)
        }
        DeploymentDelete::TYPE => {
            delivery.parse::<DeploymentDelete>()?;
            (Unread::Delete, Some(Generation(delivery.sequence)))
        }
        other => return Err(format!("the deployer takes no {other}")),
    })
}

fn within_bounds(violations: Vec<String>) -> Result<(), String> {
    if violations.is_empty() { Ok(()) } else { Err(violations.join("; ")) }
}
