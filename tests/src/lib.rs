//! The end-to-end tests ([`sheave-e2e`](../e2e/main.rs)), the demo and the house rules; nothing is offered to others.
