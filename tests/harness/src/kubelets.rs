//! A cluster with real kubelets (`tests/cluster`): clients on every node, workloads that its controllers run, and what is
//! asserted of them. Whoever uses it runs in the cluster's world, by `tests/cluster/in world`.

pub mod check;
pub mod fixture;
pub mod service;
pub mod workload;
