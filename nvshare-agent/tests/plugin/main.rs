//! The device plugin against a stand-in kubelet that speaks the v1beta1 protocol, and containers made of what the plugin
//! hands out.

mod containers;
mod life;
mod loss;
mod node;
