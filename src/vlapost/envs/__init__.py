"""The WidowX put-on-plate benchmark (arXiv 2505.19789): episodes, rules, robot, scene, and the vector environment."""
