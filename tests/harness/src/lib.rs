//! A cluster of network namespaces on one machine, for end-to-end tests, the demo and the benches.
//!
//! [`run::enter`] puts the program into namespaces of its own, with no link off the machine; [`world::World`] builds
//! nodes, pods and outside clients in them; [`cluster::Cluster`] starts the product's own programs on them, fed by a real
//! API server ([`kube::Kube`]) or by a folder of YAML. Every pod runs this same program again as [`testpod`], a server and
//! client that keeps its own record of who asked. It knows nothing of what the product ought to do: that is the tests' part.

pub mod address;
pub mod agent;
pub mod cgroup;
pub mod cluster;
pub mod deployment;
pub mod kube;
pub mod kubelets;
pub mod metrics;
pub mod netns;
pub mod objects;
pub mod pages;
pub mod pod;
pub mod process;
pub mod relay;
pub mod run;
pub mod source;
pub mod sys;
pub mod testpod;
pub mod wait;
pub mod world;
