"""From a deployment to what starts it: commands, compose files, Kubernetes manifests, and how far they were checked.

    Model, Machine, Workload ─→ arrange ─→ Deployment ─→ arguments ─→ shell, compose, kubernetes
                                                             └──────→ check: the list of flags, the engine's own parser

All but `check` is pure, apart from reading the list of flags that ships.
"""
