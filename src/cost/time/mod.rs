//! What one optimizer step makes a machine do: arithmetic, memory traffic and kernel launches, term by term.

mod metal;
mod shapes;
mod step;
mod terms;

pub use self::step::{StepCost, Term};
pub use self::terms::step_cost;
