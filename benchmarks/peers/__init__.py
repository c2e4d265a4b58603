"""What certified completion is measured against: convex solvers, R's softImpute, recommender libraries."""
